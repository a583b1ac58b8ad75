//! The task of one supervised process: does what its [`Life`] orders, and tells the life what happens.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::{error, info, warn};

use super::life::{Event, Life, Order, State};
use super::process::{Pause, Snapshot, Status, Wish};
use super::program::{Happening, Incarnation, Program};
use crate::control::{self, Configuration, Report, Word};
use crate::drain::Drained;
use crate::exposition::Family;
use crate::procfs;
use crate::sockets::Socket;

/// A timer that is later than that tells of this process, not of the one that it watches.
const LATE: Duration = Duration::from_secs(1);

/// The task that carries a life out.
pub(super) struct Keeper {
    pub(super) program: Program,
    pub(super) life: Life,
    pub(super) incarnation: Option<Incarnation>,
    pub(super) status: watch::Sender<Status>,
    pub(super) wish: watch::Receiver<Wish>,
    pub(super) shared: watch::Receiver<Vec<Arc<Socket>>>,
    pub(super) configuration: watch::Receiver<Option<Configuration>>,
    pub(super) questions: mpsc::Receiver<oneshot::Sender<Vec<Family>>>,
    pub(super) pauses: mpsc::Receiver<Pause>,
    /// Who waits for the next [`Word::Metrics`]. While anybody does the question isn't asked again.
    pub(super) asking: Vec<oneshot::Sender<Vec<Family>>>,
    /// What became of the work of earlier incarnations.
    pub(super) drained_before: Drained,
    /// The system had nothing for the last attempt to start it, which was logged.
    pub(super) lacks: bool,
}

impl Keeper {
    pub(super) async fn keep(mut self, first: Option<Order>) {
        let mut event = self.carry_out(first).await;
        loop {
            let happened = match event.take() {
                Some(event) => event,
                None => self.next_event().await,
            };
            let before = self.life.state();
            let order = self.life.take(happened, Instant::now());
            event = self.carry_out(order).await;
            self.publish();
            match (before, self.life.state(), &self.incarnation) {
                (State::Starting, State::Running, Some(incarnation)) => {
                    let after_ms = incarnation.started.elapsed().as_millis() as u64;
                    info!(process = self.program.name(), after_ms, "ready");
                }
                (before, State::Fatal, _) if before != State::Fatal => {
                    error!(process = self.program.name(), "died too often; it is not started again");
                }
                _ => {}
            }
        }
    }

    /// Waits until something happens that may concern the process's life.
    async fn next_event(&mut self) -> Event {
        let mut forgiven = None;
        loop {
            let deadline = self.life.deadline();
            let due = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            // Every arm is cancel-safe. What has been said counts before what was not said in time, and a wish to end before
            // the loss of sockets, which the process is to empty.
            tokio::select! {
                biased;
                happening = next_happening(&mut self.incarnation) => match happening {
                    Happening::Said(word) => {
                        // No order ever follows from it.
                        self.life.take(Event::Heard, Instant::now());
                        if let Some(event) = self.hear(word) { return event }
                    }
                    Happening::Ended(how) => {
                        self.bury(&how);
                        return Event::Died;
                    }
                },
                Ok(()) = self.wish.changed() => return self.wish.borrow_and_update().event(),
                Ok(()) = self.shared.changed() => self.share().await,
                Ok(()) = self.configuration.changed() => self.configure().await,
                Some(question) = self.questions.recv() => self.ask(question).await,
                Some(pause) = self.pauses.recv() => {
                    let _ = pause.answer.send(self.snapshot());
                    // An error, once it is over.
                    let _ = pause.until_dropped.await;
                }
                () = due => match deadline {
                    // This process itself was stopped, or slept: nothing was heard because nobody listened.
                    Some(at) if at.elapsed() > LATE && forgiven != deadline => {
                        forgiven = deadline;
                        self.life.take(Event::Heard, Instant::now());
                    }
                    _ => return Event::Deadline,
                },
            }
        }
    }

    fn hear(&mut self, word: Word) -> Option<Event> {
        match word {
            Word::Report(report) => {
                let (ready, takes_traffic) = (report.ready, report.takes_traffic());
                self.status.send_modify(|status| {
                    status.ready = takes_traffic;
                    status.left = report.left;
                    status.details = report.details;
                    status.drained = self.drained_before.clone();
                    status.drained.add(&report.drained);
                });
                match (report.leaves, ready) {
                    (true, _) => Some(Event::Leaves),
                    (false, true) => Some(Event::Ready),
                    (false, false) => None,
                }
            }
            Word::Beat => None,
            Word::Metrics(families) => {
                for question in self.asking.drain(..) {
                    // Who no longer waits needs no answer.
                    let _ = question.send(families.clone());
                }
                None
            }
        }
    }

    fn snapshot(&self) -> io::Result<Snapshot> {
        let status = self.status.borrow();
        Ok(Snapshot {
            name: self.program.name().to_owned(),
            past: self.life.past(Instant::now()),
            retired: *self.wish.borrow() == Wish::Retire,
            report: Report {
                ready: status.ready,
                left: status.left,
                details: status.details.clone(),
                drained: status.drained.clone().since(&self.drained_before),
                ..Report::default()
            },
            incarnation: self.incarnation.as_ref().map(Incarnation::inherited).transpose()?,
        })
    }

    fn bury(&mut self, how: &str) {
        self.incarnation = None;
        self.asking.clear();
        self.drained_before = self.status.borrow().drained.clone();
        if self.life.state() == State::Stopping {
            info!(process = self.program.name(), how, "ended");
        } else {
            warn!(process = self.program.name(), how, "died");
        }
    }

    async fn ask(&mut self, question: oneshot::Sender<Vec<Family>>) {
        let Some(incarnation) = &mut self.incarnation else {
            return;
        };
        self.asking.retain(|waiting| !waiting.is_closed());
        if self.asking.is_empty() {
            incarnation.tell(&control::Order::Metrics, None).await;
        }
        self.asking.push(question);
    }

    /// Gives the process the sockets that it is to accept on. One that ends has let go of all.
    async fn share(&mut self) {
        let shared = self.shared.borrow_and_update().clone();
        if let Some(incarnation) = &mut self.incarnation
            && self.life.state().is_up()
        {
            incarnation.share(&shared).await;
        }
    }

    async fn configure(&mut self) {
        let Some(configuration) = self.configuration.borrow_and_update().clone() else { return };
        self.program.adopt(configuration.clone());
        self.tell(&control::Order::Adopt(Box::new(configuration))).await;
    }

    /// Does as the life orders. What happens by that is returned.
    async fn carry_out(&mut self, order: Option<Order>) -> Option<Event> {
        match order? {
            Order::Spawn => {
                let shared = self.shared.borrow_and_update().clone();
                match self.program.spawn(&shared) {
                    Ok(incarnation) => {
                        info!(process = self.program.name(), pid = incarnation.pid(), "started");
                        self.lacks = false;
                        self.incarnation = Some(incarnation);
                        self.share().await;
                        self.publish();
                    }
                    Err(error) if is_lack(&error) => {
                        if !std::mem::replace(&mut self.lacks, true) {
                            error!(process = self.program.name(), %error, "can't be started just now, trying again");
                        }
                        return Some(Event::Lacking);
                    }
                    Err(error) => {
                        let executable = self.program.executable().display();
                        error!(process = self.program.name(), %executable, %error, "can't be started");
                        return Some(Event::Died);
                    }
                }
            }
            Order::Drain => self.tell(&control::Order::Drain).await,
            Order::End => self.tell(&control::Order::End).await,
            Order::Kill => {
                if let Some(incarnation) = &mut self.incarnation {
                    warn!(process = self.program.name(), "does not end; it is killed");
                    incarnation.kill();
                }
            }
            Order::Quit => {
                if let Some(incarnation) = &mut self.incarnation {
                    let stuck = procfs::doing(incarnation.pid());
                    error!(process = self.program.name(), %stuck, "says nothing any more; it is killed");
                    incarnation.quit();
                }
            }
        }
        None
    }

    async fn tell(&mut self, order: &control::Order) {
        if let Some(incarnation) = &mut self.incarnation {
            incarnation.tell(order, None).await;
        }
    }

    fn publish(&mut self) {
        let pid = self.incarnation.as_ref().map(Incarnation::pid);
        let started = self.incarnation.as_ref().map(|incarnation| incarnation.started);
        self.status.send_modify(|status| {
            status.state = self.life.state();
            status.is_to_rest = self.life.is_to_rest();
            status.restarts = self.life.restarts();
            if status.pid != pid {
                status.started = started;
                status.ready = false;
                status.left = false;
                status.details.clear();
            }
            status.pid = pid;
        });
    }
}

/// Whether the system is short of files, processes or memory: that passes.
fn is_lack(error: &io::Error) -> bool {
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM, Errno::NOBUFS, Errno::TOOMANYREFS];
    Errno::from_io_error(error).is_some_and(|error| lacks.contains(&error))
}

async fn next_happening(incarnation: &mut Option<Incarnation>) -> Happening {
    match incarnation {
        Some(incarnation) => incarnation.next().await,
        None => std::future::pending().await,
    }
}
