//! Stands between a socket and the HTTP/1.1 engine: only sound bytes pass, and one message at a time.
//!
//! The engine reads a request's head when all of it is sound and the exchange before it is over; until then
//! bytes wait here. So a pipelined request that breaks a rule is answered after those before it; and what
//! follows a request to switch protocols is untouched when the answer decides whose it is.
//!
//! A refused head is answered in its turn, too: the engine is given a stand-in to read in its place, and
//! whoever answers asks [`Gate::refused`] first. A refused body ends for the engine in an error.
//!
//! | phase | what the engine may read |
//! | --- | --- |
//! | idle | the next head, once it is whole |
//! | busy | the body of its request; then nothing, until the exchange is over |
//! | refused | the stand-in; then nothing |

use std::cell::{RefCell, RefMut};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::framing::{Framing, Rule, Step};
use crate::limits::Limits;
use crate::socket::Socket;

/// A connection's gate, shared by the engine (as its socket), by what answers requests and by what drives
/// them.
#[derive(Clone)]
pub(crate) struct Gate(Rc<RefCell<Inner>>);

struct Inner {
    socket: Option<Socket>,
    framing: Framing,
    /// What was read and has not gone on.
    waiting: BytesMut,
    /// How much of `waiting` is to go on as soon as the engine has room for it.
    passed: usize,
    phase: Phase,
    /// In the idle phase: since when, or since when a head is on its way.
    since: Instant,
    refused: Option<Rule>,
    malformed: Option<Rule>,
    /// The client has ended its side.
    ended: bool,
    /// Nothing more is wanted of the client, unless it has sent it already.
    closing: bool,
    /// Something has come up that the engine will not be woken for by the socket.
    news: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Busy,
    Refused,
}

/// What comes of the bytes at hand.
enum Verdict {
    /// So many may go on, perhaps none.
    Pass(usize),
    /// None may, and the stand-in is to go on instead.
    StandIn,
    /// The body breaks a rule behind so many that may go on.
    Malformed(usize),
}

const STAND_IN: &[u8] = b"GET /refused HTTP/1.1\r\nHost: refused\r\n\r\n";
/// How much of what follows a request is read while it is answered: a reader is needed to see that the client
/// leaves.
const READ_AHEAD_BYTES: usize = 16 * 1024;

impl Gate {
    pub(crate) fn new(socket: Socket, limits: &Limits) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            socket: Some(socket),
            framing: Framing::new(limits.max_head_bytes, limits.max_headers),
            waiting: BytesMut::new(),
            passed: 0,
            phase: Phase::Idle,
            since: Instant::now(),
            refused: None,
            malformed: None,
            ended: false,
            closing: false,
            news: false,
        })))
    }

    fn inner(&self) -> RefMut<'_, Inner> {
        self.0.borrow_mut()
    }

    /// The rule that the request's head has broken; the request that the engine has read is the stand-in
    /// then.
    pub(crate) fn refused(&self) -> Option<Rule> {
        self.inner().refused
    }

    /// The rule that the request's body has broken.
    pub(crate) fn malformed(&self) -> Option<Rule> {
        self.inner().malformed
    }

    /// Whether the request has been read to its end, be it by the engine only.
    pub(crate) fn request_ended(&self) -> bool {
        let inner = self.inner();
        inner.framing.between_messages() && inner.refused.is_none()
    }

    /// The exchange is over: its answer has been handed to the engine to the end. The next head may go on.
    pub(crate) fn exchange_over(&self) {
        let mut inner = self.inner();
        if inner.phase == Phase::Busy {
            inner.phase = Phase::Idle;
            inner.since = Instant::now();
            inner.news = inner.closing || inner.ended || !inner.waiting.is_empty();
        }
    }

    /// Whether the engine should look again although the socket will not wake it. True once for each cause.
    pub(crate) fn take_news(&self) -> bool {
        std::mem::take(&mut self.inner().news)
    }

    /// When the client will have kept us waiting for too long; `None` while it is we who are at work.
    pub(crate) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let inner = self.inner();
        let limit = if inner.waiting.is_empty() { limits.idle_timeout } else { limits.head_timeout };
        (inner.phase == Phase::Idle).then(|| inner.since + limit)
    }

    /// The deadline is over: a head that is on its way is refused; a connection that is idle ends.
    pub(crate) fn expire(&self) {
        let mut inner = self.inner();
        inner.news = true;
        if inner.waiting.is_empty() {
            inner.closing = true;
        } else {
            inner.refuse(Rule::HeadTooSlow);
        }
    }

    /// From now on the connection ends as soon as it is idle.
    pub(crate) fn close_when_idle(&self) {
        let mut inner = self.inner();
        inner.closing = true;
        inner.news = true;
    }

    /// Whether the connection is about to end although the client may still be sending.
    pub(crate) fn unread(&self) -> bool {
        let inner = self.inner();
        let clean = inner.framing.between_messages() && inner.waiting.is_empty() && inner.refused.is_none();
        !clean && !inner.ended
    }

    /// The socket, with everything that the engine was not given. Only once.
    pub(crate) fn take_socket(&self) -> Option<Socket> {
        let mut inner = self.inner();
        let mut socket = inner.socket.take()?;
        let waiting = inner.waiting.split().freeze();
        if !waiting.is_empty() {
            socket.unread(waiting);
        }
        Some(socket)
    }
}

impl Inner {
    fn socket(&mut self) -> io::Result<Pin<&mut Socket>> {
        self.socket.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn refuse(&mut self, rule: Rule) {
        self.phase = Phase::Refused;
        self.refused = Some(rule);
        self.waiting = BytesMut::from(STAND_IN);
        self.passed = STAND_IN.len();
    }

    /// How far the bytes may go on now, in the phase that the connection is in.
    fn judge(&mut self, bytes: &[u8]) -> Verdict {
        let mut passed = 0;
        loop {
            if self.framing.between_messages() && self.phase != Phase::Idle {
                return Verdict::Pass(passed);
            }
            match self.framing.step(&bytes[passed..]) {
                Step::More => return Verdict::Pass(passed),
                Step::Head { length, .. } => {
                    self.phase = Phase::Busy;
                    passed += length;
                }
                Step::Body { length, .. } => passed += length,
                Step::Refused(rule) if self.phase == Phase::Idle => {
                    self.refuse(rule);
                    return Verdict::StandIn;
                }
                Step::Refused(rule) => {
                    self.malformed = Some(rule);
                    return Verdict::Malformed(passed);
                }
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, space: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.passed > 0 {
                let length = self.passed.min(space.remaining());
                space.put_slice(&self.waiting[..length]);
                self.waiting.advance(length);
                self.passed -= length;
                return Poll::Ready(Ok(()));
            }
            if self.malformed.is_some() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "malformed body")));
            }
            if self.phase == Phase::Refused {
                return Poll::Pending;
            }
            if !self.waiting.is_empty() && self.judge_waiting() {
                continue;
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            let held = self.phase == Phase::Busy && self.framing.between_messages();
            if self.waiting.is_empty() && !held {
                if ready!(self.poll_straight(cx, space))? {
                    return Poll::Ready(Ok(()));
                }
            } else {
                if held && self.waiting.len() >= READ_AHEAD_BYTES {
                    return Poll::Pending;
                }
                ready!(self.poll_more(cx))?;
            }
        }
    }

    /// Judges what waits; says whether anything has come of it.
    fn judge_waiting(&mut self) -> bool {
        let waiting = std::mem::take(&mut self.waiting);
        match self.judge(&waiting) {
            // The stand-in has taken the place of what waited.
            Verdict::StandIn => true,
            Verdict::Pass(passed) => {
                self.waiting = waiting;
                self.passed = passed;
                passed > 0
            }
            Verdict::Malformed(passed) => {
                self.waiting = waiting;
                self.passed = passed;
                true
            }
        }
    }

    /// Reads into the engine's own buffer, and leaves there what may go on: bodies, and heads that come in
    /// one piece. Says whether the engine has something to look at.
    fn poll_straight(&mut self, cx: &mut Context<'_>, space: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = space.filled().len();
        match self.socket()?.poll_read(cx, space) {
            Poll::Pending if self.closing && self.phase == Phase::Idle => return Poll::Ready(Ok(true)),
            result => ready!(result)?,
        }
        if space.filled().len() == before {
            self.ended = true;
            return Poll::Ready(Ok(true));
        }
        let verdict = self.judge(&space.filled()[before..]);
        let passed = match verdict {
            Verdict::Pass(passed) | Verdict::Malformed(passed) => passed,
            Verdict::StandIn => {
                space.set_filled(before);
                return Poll::Ready(Ok(false));
            }
        };
        self.waiting.extend_from_slice(&space.filled()[before + passed..]);
        if self.phase == Phase::Idle {
            self.since = Instant::now();
        }
        space.set_filled(before + passed);
        Poll::Ready(Ok(passed > 0))
    }

    /// Reads more behind what waits.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = [0; 4096];
        let mut space = ReadBuf::new(&mut buffer);
        ready!(self.socket()?.poll_read(cx, &mut space))?;
        if space.filled().is_empty() {
            self.ended = true;
        } else {
            self.waiting.extend_from_slice(space.filled());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.inner().poll_read(cx, space)
    }
}

impl AsyncWrite for Gate {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().socket()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.inner().socket()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().socket()?.poll_flush(cx)
    }

    /// The engine is done. How the connection ends is decided by whoever drives it.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
