//! A client's connection and an upstream's after a 101, relayed to each other: bytes both ways, and in a drain the end of a
//! WebSocket by its own rules. Where its exchange is recalled it ends likewise, and at once.
//!
//! | in a drain | a WebSocket | anything else |
//! | --- | --- | --- |
//! | at a time of its own | both sides get Close 1001, at the next end of a message, later on of any frame | goes on |
//! | once a peer has sent its Close, too | its connection is ended | |
//! | after `tunnel_drain_timeout` | cut | cut |
//!
//! What waits to be read is waited for before memory is taken for it: a tunnel on which nothing moves holds none.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::buffer::Buffer;
use crate::clock;
use crate::deadline::Deadline;
use crate::drain::{Draining, Kind, Parting};
use crate::exchange::Exchange;
use crate::socket::Socket;
use crate::websocket::{Boundary, Frames, GOING_AWAY, masked_going_away};

/// What is relayed to whom, until nothing has moved for a time.
pub(crate) struct Relay {
    client: Socket,
    upstream: Socket,
    /// What the client gets, and what the upstream gets.
    down: Way,
    up: Way,
    idle_timeout: Duration,
    deadline: Deadline,
    /// Drawn when the drain starts, or the exchange is recalled.
    parting: Option<Parting>,
}

/// How it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// By the two sides, or by a failure of one.
    Over,
    /// The drain, or the recall, has ended it, and the client has agreed.
    Closed,
    /// Its time was over.
    Cut,
}

impl Relay {
    pub(crate) fn new(client: Socket, upstream: Socket, is_websocket: bool, idle_timeout: Duration) -> Self {
        let way = |masks| Way {
            buffer: Buffer::new(),
            frames: is_websocket.then(Frames::default),
            masks,
            stage: Stage::Passing,
            ended: false,
            hung_up: false,
            shut: false,
            unflushed: false,
        };
        let (down, up) = (way(false), way(true));
        Self { client, upstream, down, up, idle_timeout, deadline: Deadline::default(), parting: None }
    }

    /// Relays until both sides have ended. One side's end is passed on as such, so that the other may still finish.
    ///
    /// It is no `async fn`, in which the relay would have its room twice: thousands of these may be idle.
    pub(crate) fn run(self, drain: &Draining, exchange: &Exchange) -> impl Future<Output = Outcome> {
        let mut relay = self;
        async move {
            let mut moved = clock::now();
            let outcome = poll_fn(|cx| relay.poll(cx, drain, exchange, &mut moved)).await;
            if outcome == Outcome::Cut {
                // An end, and not an error, for whoever looks.
                poll_fn(|cx| relay.poll_shutdown(cx)).await;
            }
            if relay.is_closed() { Outcome::Closed } else { outcome }
        }
    }

    /// As far as it goes without waiting.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = Pin::new(&mut self.client).poll_shutdown(cx);
        let _ = Pin::new(&mut self.upstream).poll_shutdown(cx);
        Poll::Ready(())
    }

    /// Whether the client has answered our Close.
    fn is_closed(&self) -> bool {
        self.down.stage == Stage::Parted && self.up.is_closed()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        drain: &Draining,
        exchange: &Exchange,
        moved: &mut Instant,
    ) -> Poll<Outcome> {
        loop {
            let now = clock::now();
            let until = match self.part(drain, exchange.recalled(cx), now) {
                Some(next) if next <= now => return Poll::Ready(Outcome::Cut),
                next => next,
            };
            let before = exchange.bytes_out.get() + exchange.bytes_in.get();
            let down = self.down.poll(cx, &mut self.upstream, &mut self.client, &exchange.bytes_out);
            let up = self.up.poll(cx, &mut self.client, &mut self.upstream, &exchange.bytes_in);
            if before != exchange.bytes_out.get() + exchange.bytes_in.get() {
                *moved = now;
            }
            match (down, up) {
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Outcome::Over),
                // An error leaves nothing to relay to or from.
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(Outcome::Over),
                _ => {}
            }
            // Whoever has heard the other's Close and said its own has nothing to say.
            let (up_closed, down_closed) = (self.up.is_closed(), self.down.is_closed());
            if self.down.hang_up(up_closed) | self.up.hang_up(down_closed) {
                continue;
            }
            let idle = *moved + self.idle_timeout;
            ready!(self.deadline.poll(cx, until.map_or(idle, |until| until.min(idle))));
            if idle <= clock::now() {
                return Poll::Ready(Outcome::Over);
            }
        }
    }

    /// What a drain, or a recall, does to it now; says when it does the next, the last of which is the end. Whichever
    /// starts wakes it.
    fn part(&mut self, drain: &Draining, recalled: Option<Instant>, now: Instant) -> Option<Instant> {
        let Parting { at, until } = drain.part(Kind::Tunnel, &mut self.parting, recalled)?;
        // From here on no message is waited for.
        let at_last = at + until.saturating_duration_since(at) / 2;
        let boundary = if now < at_last { Boundary::Message } else { Boundary::Frame };
        if at <= now {
            self.down.part(boundary);
            self.up.part(boundary);
        }
        [at, at_last].into_iter().find(|next| now < *next).or(Some(until))
    }
}

/// One direction.
struct Way {
    /// Read and not sent.
    buffer: Buffer,
    /// Of a WebSocket.
    frames: Option<Frames>,
    /// It goes to a server.
    masks: bool,
    stage: Stage,
    /// Nothing more comes.
    ended: bool,
    /// The receiver has said its last word, too.
    hung_up: bool,
    /// The receiver has been told that nothing more comes.
    shut: bool,
    unflushed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Passing,
    /// At the next of these a Close of ours is put in.
    Parting(Boundary),
    /// There was a Close: what still comes goes nowhere.
    Parted,
}

impl Way {
    /// Moves what there is. Ready when nothing more comes, and the receiver has been told so.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Socket,
        to: &mut Socket,
        bytes: &Cell<u64>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Err(error) = ready!(self.poll_send(cx, to, bytes)) {
                self.lost(error)?;
                self.shut = true;
            }
            if self.ended {
                return if self.shut { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            match ready!(from.poll_fill(cx, &mut self.buffer)) {
                Ok(0) => self.ended = true,
                Ok(_) => self.take(),
                Err(error) => self.lost(error)?,
            }
        }
    }

    /// Sends all that was read, and the end where it is time for it.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Socket,
        bytes: &Cell<u64>,
    ) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            let sent = ready!(Pin::new(&mut *to).poll_write(cx, self.buffer.filled()))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.consume(sent);
            self.unflushed = true;
            bytes.set(bytes.get() + sent as u64);
        }
        if self.unflushed {
            ready!(Pin::new(&mut *to).poll_flush(cx))?;
            self.unflushed = false;
        }
        let is_over = if self.stage == Stage::Parted { self.hung_up } else { self.ended };
        if is_over && !self.shut {
            ready!(Pin::new(to).poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    /// One side has failed. After the last word that is an end like others.
    fn lost(&mut self, error: io::Error) -> io::Result<()> {
        if self.stage != Stage::Parted {
            return Err(error);
        }
        self.ended = true;
        self.buffer.truncate(0);
        Ok(())
    }

    /// Whether its sender has said its last word.
    fn is_closed(&self) -> bool {
        self.ended || self.frames.as_ref().is_some_and(Frames::is_closed)
    }

    /// Where the last word was said, and the receiver has said its own, this direction is to end; says whether that is new.
    fn hang_up(&mut self, receiver_closed: bool) -> bool {
        let hangs_up = self.stage == Stage::Parted && receiver_closed && !self.hung_up;
        self.hung_up |= hangs_up;
        hangs_up
    }

    /// Has the last word said at the next boundary of this kind.
    fn part(&mut self, boundary: Boundary) {
        let Some(frames) = self.frames.as_ref().filter(|_| self.stage != Stage::Parted && !self.ended) else {
            return;
        };
        self.stage = Stage::Parting(boundary);
        if frames.is_at(boundary) {
            self.close_behind(self.buffer.len());
        }
    }

    /// Looks at what was read.
    fn take(&mut self) {
        let Some(frames) = &mut self.frames else { return };
        match self.stage {
            Stage::Passing => frames.pass(self.buffer.filled()),
            Stage::Parting(boundary) => {
                if let Some(length) = frames.pass_until(boundary, self.buffer.filled()) {
                    self.close_behind(length);
                }
            }
            Stage::Parted => {
                frames.pass(self.buffer.filled());
                self.buffer.truncate(0);
            }
        }
    }

    /// Puts a Close behind so much of what is in the buffer, up to which frames were followed, unless the sender's own is
    /// there.
    fn close_behind(&mut self, length: usize) {
        let Some(frames) = &mut self.frames else { return };
        let was_closed = frames.is_closed();
        frames.pass(&self.buffer.filled()[length..]);
        self.buffer.truncate(length);
        match self.masks {
            _ if was_closed => {}
            true => self.buffer.extend(&masked_going_away(rand::random())),
            false => self.buffer.extend(&GOING_AWAY),
        }
        self.stage = Stage::Parted;
    }
}

#[cfg(test)]
mod tests;
