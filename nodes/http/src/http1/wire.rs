//! The client's end of an HTTP/1.1 connection: what is read, what is understood of it, and what waits to be sent. Shared
//! by the connection's task and by the body of the request that it is at.
//!
//! Memory for bytes is held only while there are some: an idle connection has none.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http_body::Frame;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::intake::{Intake, Read, Taken};
use super::rule::Rule;
use super::scan::{Bounds, Content, Scan};
use super::write;
use crate::body::BodyError;
use crate::clock;
use crate::deadline::{Deadline, Patience};
use crate::head::{Known, RequestHead};
use crate::limits::Limits;
use crate::outbox::Outbox;
use crate::socket::Stream;
use crate::turn;

/// One connection.
pub(crate) struct Wire {
    pub(super) stream: Stream,
    /// Of the request that is being answered, and what is read beside.
    pub(super) intake: Intake,
    /// Of a head that came in several pieces.
    scan: Option<Box<Scan>>,
    bounds: Bounds,
    body_patience: Patience,
    /// Somebody may still read the body.
    pub(super) has_reader: bool,
    /// The client waits to be asked for the body.
    owes_continue: bool,
    /// The client has ended its side, then.
    ended: Option<Instant>,
    /// The connection is of no use any more.
    broken: bool,
    /// In the idle phase: since when, or since when a head is on its way.
    since: Instant,
    /// The first bytes of a head have come.
    head_begins: bool,
    /// The rest of a head is waited for.
    head_waited: bool,
    deadline: Deadline,
    pub(super) out: Outbox,
    write_patience: Patience,
    /// What was sealed and not sent when something was sent last.
    sealed_bytes: usize,
    /// Answers are to be sent at the end of the turn.
    waits_for_turn: bool,
    /// The connection's task, where somebody else reads.
    watcher: Option<Waker>,
}

/// What a connection does next.
pub(super) enum Next {
    Request {
        head: RequestHead,
        /// When the first byte of the head came, where the rest had to be waited for.
        begun: Option<Instant>,
    },
    /// The head breaks a rule.
    Refused(Rule),
    /// Nothing: it is over.
    End,
}

/// A client that has ended its side may wait for the answer all the same, or be gone: nothing tells before something is
/// sent. So it is served for a while.
const HALF_CLOSED_WAIT: Duration = Duration::from_secs(1);
/// How long after the start of a drain idle connections are kept: many a request is on its way already.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);
/// How much of what follows a request is read while it is answered: a reader is needed to see that the client leaves.
const READ_AHEAD_BYTES: usize = 16 * 1024;

impl Wire {
    /// A connection of which some bytes have been read.
    pub(crate) fn shared(stream: Stream, leading: &[u8], limits: &Limits) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self::new(stream, leading, limits)))
    }

    fn new(stream: Stream, leading: &[u8], limits: &Limits) -> Self {
        let bounds = Bounds { bytes: limits.max_head_bytes, fields: limits.max_headers };
        let mut intake = Intake::new(bounds);
        intake.unread.extend(leading);
        Self {
            stream,
            intake,
            scan: None,
            bounds,
            body_patience: Patience::new(limits.body_idle_timeout),
            has_reader: false,
            owes_continue: false,
            ended: None,
            broken: false,
            since: clock::now(),
            head_begins: false,
            head_waited: false,
            deadline: Deadline::default(),
            out: Outbox::default(),
            write_patience: Patience::new(limits.write_timeout),
            sealed_bytes: 0,
            waits_for_turn: false,
            watcher: None,
        }
    }

    /// From now on it is idle: an exchange has just ended.
    pub(super) fn rest(&mut self) {
        self.since = clock::recent();
    }

    /// The next request, once its head is whole.
    /// Where a drain has started (`closing`) an idle client has [`LAST_WORD`] to come with a request that it was about to
    /// send: the answer tells it that it is the last.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        limits: &Limits,
        closing: Option<Instant>,
    ) -> Poll<Next> {
        loop {
            if !self.intake.unread.is_empty() {
                match self.read_head() {
                    Ok(Some(head)) => {
                        let begun = std::mem::take(&mut self.head_waited).then_some(self.since);
                        return Poll::Ready(Next::Request { head, begun });
                    }
                    Ok(None) => {}
                    Err(rule) => return Poll::Ready(Next::Refused(rule)),
                }
            }
            ready!(self.poll_answers(cx));
            if self.broken || self.ended.is_some() {
                return Poll::Ready(Next::End);
            }
            let idle = self.intake.unread.is_empty();
            if self.poll_read(cx).is_ready() {
                self.head_begins |= idle;
                continue;
            }
            if std::mem::take(&mut self.head_begins) && !idle {
                // The head's time begins with its first byte, which has just come.
                self.since = clock::now();
            }
            self.head_waited = !idle;
            let until = match (idle, closing) {
                (false, _) => self.since + limits.head_timeout,
                (true, None) => self.since + limits.idle_timeout,
                (true, Some(since)) => (self.since + limits.idle_timeout).min(since + LAST_WORD),
            };
            ready!(self.deadline.poll(cx, until));
            return Poll::Ready(if idle { Next::End } else { Next::Refused(Rule::HeadTooSlow) });
        }
    }

    /// Sends the answers that are left in the outbox, at the end of the turn.
    fn poll_answers(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_unsent() && !std::mem::replace(&mut self.waits_for_turn, true) {
            turn::again_at_its_end(cx);
            return Poll::Pending;
        }
        // A failure is noted where it is found.
        let _ = ready!(self.poll_flush(cx));
        self.waits_for_turn = false;
        Poll::Ready(())
    }

    fn read_head(&mut self) -> Result<Option<RequestHead>, Rule> {
        // One that comes whole, as nearly all do, needs no memory of its own.
        let mut kept = self.scan.take();
        let mut fresh = None;
        let scan = match &mut kept {
            Some(scan) => scan,
            None => fresh.insert(Scan::request()),
        };
        let Some(length) = scan.advance(self.intake.unread.filled(), self.bounds)? else {
            self.scan = kept.or_else(|| fresh.map(Box::new));
            return Ok(None);
        };
        let scan = kept.map(|scan| *scan).or(fresh).unwrap_or_else(Scan::request);
        let (head, content) = scan.into_request()?;
        self.intake.unread.consume(length);
        self.owes_continue = content != Content::Fixed(0) && expects_continue(&head);
        self.intake.begin(content);
        self.body_patience.renew();
        Ok(Some(head))
    }

    /// Reads once. Ready means that there is something new to look at.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.intake.unread.poll_fill(cx, &mut self.stream)) {
            Ok(0) => self.ended = Some(clock::now()),
            Ok(_) => {}
            Err(_) => self.broken = true,
        }
        Poll::Ready(())
    }

    /// Whether the request has a body that isn't over.
    pub(super) fn has_body(&self) -> bool {
        !self.intake.has_ended()
    }

    /// How many bytes of the body are still to come, where that is known.
    pub(super) fn body_length(&self) -> Option<u64> {
        self.intake.exact_length()
    }

    /// The next piece of the body.
    pub(super) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, BodyFault>> {
        loop {
            match self.intake.take().map_err(BodyFault::Broken)? {
                Taken::Frame(frame) => return Poll::Ready(Ok(Some(frame))),
                Taken::End => return Poll::Ready(Ok(None)),
                Taken::Nothing => {}
            }
            if self.broken || self.ended.is_some() {
                return Poll::Ready(Err(BodyFault::Gone));
            }
            self.poll_ask(cx);
            let Poll::Ready(read) = self.intake.poll_read(cx, &mut self.stream) else {
                ready!(self.body_patience.poll_lost(cx));
                return Poll::Ready(Err(BodyFault::TooSlow(self.body_patience.limit())));
            };
            self.body_patience.renew();
            match read {
                Ok(Read::Data(data)) => return Poll::Ready(Ok(Some(Frame::data(data)))),
                Ok(Read::More) => {}
                Ok(Read::End) => self.ended = Some(clock::now()),
                Err(_) => self.broken = true,
            }
        }
    }

    /// Asks for a body that the client has kept back.
    fn poll_ask(&mut self, cx: &mut Context<'_>) {
        if std::mem::take(&mut self.owes_continue) {
            self.out.head().extend_from_slice(write::CONTINUE);
        } else if !self.has_unsent() {
            return;
        }
        // What can't be sent now is sent at the next poll, or before the answer; a failure shows when it is read.
        let _ = self.poll_flush(cx);
    }

    /// The answer begins: the body is not asked for any more. Says whether all of it has come, so that another request
    /// may follow; what of it is at hand and nobody wants is thrown away.
    pub(super) fn begin_answer(&mut self) -> bool {
        let owed = std::mem::take(&mut self.owes_continue);
        while !owed && !self.has_reader && matches!(self.intake.take(), Ok(Taken::Frame(_))) {}
        !self.has_body()
    }

    /// Ready when the client has left, while its request is being answered.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.broken {
                return Poll::Ready(());
            }
            if let Some(ended) = self.ended {
                return self.deadline.poll(cx, ended + HALF_CLOSED_WAIT);
            }
            // Whoever reads the body sees it, and tells when it is over.
            if self.has_body() && self.has_reader {
                self.watcher = Some(cx.waker().clone());
                return Poll::Pending;
            }
            // What is more than enough is left where it is.
            if self.intake.unread.len() >= READ_AHEAD_BYTES {
                return Poll::Pending;
            }
            ready!(self.poll_read(cx));
        }
    }

    /// Sends what waits. An error means that the connection is of no use any more.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_unsent() {
            return Poll::Ready(Ok(()));
        }
        let waiting = self.out.len();
        let sent = self.out.poll_send(cx, &mut self.stream);
        if self.out.len() < waiting {
            // However slowly, it takes something.
            self.write_patience.renew();
        }
        self.poll_taken(cx, sent)
    }

    /// The client is busy with its request, and may take nothing before it has sent all of that.
    pub(super) fn keep_patience(&mut self) {
        self.write_patience.renew();
    }

    /// Whether something waits to be sent, be it sealed already.
    pub(super) fn has_unsent(&self) -> bool {
        !self.out.is_empty() || self.stream.sealed_bytes() > 0
    }

    /// Looks once for what the client has sent meanwhile.
    pub(super) fn look(&mut self, cx: &mut Context<'_>) {
        if self.intake.unread.is_empty() && self.ended.is_none() && !self.broken {
            let _ = self.poll_read(cx);
        }
    }

    /// Somebody else has come to the end of the body, or doesn't want it: the connection's task has to look again.
    pub(super) fn wake(&mut self) {
        if let Some(task) = self.watcher.take() {
            task.wake();
        }
    }

    /// Ready when the client is likely to take something.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.poll_room(cx) {
            Poll::Pending => self.poll_taken(cx, Poll::Pending),
            room => room,
        }
    }

    /// Sends past the outbox as much as can be now; says how much.
    pub(super) fn poll_send_all(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut sent = 0;
        while sent < bytes.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &bytes[sent..]) {
                Poll::Ready(Ok(length @ 1..)) => sent += length,
                // What it is shows at the next attempt.
                _ if sent > 0 => break,
                none => return self.poll_taken(cx, none),
            }
        }
        self.poll_taken(cx, Poll::Ready(Ok(sent)))
    }

    /// Sends what is in a pipe past the outbox; says how much.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &OwnedFd,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        let sent = self.stream.poll_drain(cx, pipe, length);
        self.poll_taken(cx, sent)
    }

    /// Gives a client up that takes nothing for too long.
    pub(super) fn poll_taken<T>(
        &mut self,
        cx: &mut Context<'_>,
        sent: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let sealed_bytes = self.stream.sealed_bytes();
        if sealed_bytes != std::mem::replace(&mut self.sealed_bytes, sealed_bytes) {
            self.write_patience.renew();
        }
        match sent {
            Poll::Ready(sent) => {
                self.write_patience.renew();
                self.broken |= sent.is_err();
                Poll::Ready(sent)
            }
            Poll::Pending => {
                ready!(self.write_patience.poll_lost(cx));
                self.broken = true;
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// Whether the connection is about to end although the client may still be sending.
    pub(super) fn is_unread(&self) -> bool {
        (self.has_body() || !self.intake.unread.is_empty()) && self.ended.is_none() && !self.broken
    }
}

/// Why a body is not whole.
#[derive(Debug)]
pub(super) enum BodyFault {
    Broken(Rule),
    Gone,
    TooSlow(Duration),
}

impl From<BodyFault> for BodyError {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::Broken(rule) => Self::Malformed(rule.detail()),
            BodyFault::Gone => Self::ClientGone,
            BodyFault::TooSlow(limit) => Self::TooSlow(limit),
        }
    }
}

fn expects_continue(head: &RequestHead) -> bool {
    let expects = |value: &[u8]| value.eq_ignore_ascii_case(b"100-continue");
    head.version == Version::HTTP_11 && head.fields.known(Known::Expect).any(expects)
}
