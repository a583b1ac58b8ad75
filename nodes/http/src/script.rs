//! A stream that does what a test tells it, call by call.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What comes of a call that reads.
#[derive(Clone, Debug)]
pub(crate) enum Read {
    Bytes(Vec<u8>),
    /// Nothing now, but at once afterwards.
    Block,
    /// Nothing for a time.
    Wait(Duration),
    End,
    Reset,
}

/// What comes of a call that writes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Write {
    /// So many bytes are taken at most.
    Take(usize),
    Block,
    /// Nothing for a time.
    Wait(Duration),
    /// Nothing, for ever.
    Never,
}

/// After the last `Read` nothing comes any more; after the last `Write` everything is taken.
pub(crate) struct Script {
    pub(crate) reads: VecDeque<Read>,
    pub(crate) writes: VecDeque<Write>,
    pub(crate) sent: Rc<RefCell<Vec<u8>>>,
    /// How many calls there were.
    pub(crate) calls: Rc<RefCell<usize>>,
    /// The call at which the peer resets the connection.
    pub(crate) reset_at: Option<usize>,
    /// For a read, and for a write.
    waits: [Option<Pin<Box<Sleep>>>; 2],
}

impl Script {
    pub(crate) fn new(reads: impl IntoIterator<Item = Read>) -> Self {
        let (sent, calls) = (Rc::default(), Rc::default());
        Self {
            reads: reads.into_iter().collect(),
            writes: VecDeque::new(),
            sent,
            calls,
            reset_at: None,
            waits: [None, None],
        }
    }

    /// Ready after a time, for one of the two directions.
    fn poll_wait(&mut self, direction: usize, cx: &mut Context<'_>, time: Duration) -> Poll<()> {
        let wait = self.waits[direction].get_or_insert_with(|| Box::pin(sleep(time)));
        ready!(wait.as_mut().poll(cx));
        self.waits[direction] = None;
        Poll::Ready(())
    }

    fn called(&self) -> io::Result<()> {
        let mut calls = self.calls.borrow_mut();
        *calls += 1;
        match self.reset_at {
            Some(at) if *calls >= at => Err(io::ErrorKind::ConnectionReset.into()),
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.called()?;
        match self.reads.pop_front() {
            None => return Poll::Pending,
            Some(Read::Block) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Read::Wait(time)) => {
                if self.poll_wait(0, cx, time).is_pending() {
                    self.reads.push_front(Read::Wait(time));
                } else {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
            Some(Read::End) => self.reads.push_front(Read::End),
            Some(Read::Reset) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Some(Read::Bytes(mut bytes)) => {
                let rest = bytes.split_off(bytes.len().min(space.remaining()));
                space.put_slice(&bytes);
                if !rest.is_empty() {
                    self.reads.push_front(Read::Bytes(rest));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.called()?;
        let taken = match self.writes.pop_front() {
            None => bytes.len(),
            Some(Write::Take(most)) => bytes.len().min(most),
            Some(Write::Block) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Write::Wait(time)) => {
                if self.poll_wait(1, cx, time).is_pending() {
                    self.writes.push_front(Write::Wait(time));
                } else {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
            Some(Write::Never) => {
                self.writes.push_front(Write::Never);
                return Poll::Pending;
            }
        };
        self.sent.borrow_mut().extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
