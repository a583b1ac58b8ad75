//! What of a node passes from one program to the next besides its children, and how that is done.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{
    ChildrenPart, Fingerprint, Handover, Packing, Progress, Succession, UpgradeError, UpgradeStatus, execute,
    proc_path, rehearse,
};
use crate::children::{ChildError, Held};
use crate::commands::{CommandError, Outcome};
use crate::drain::{Drain, Trigger};
use crate::node::{Body, Node, unix_ms};
use crate::parent::Spec;
use crate::running::{Claim, Instance};
use crate::signals;
use crate::systemd;

/// For the answer to who has ordered what this program ends with, and his connection.
pub(crate) const ANSWER_TIME: Duration = Duration::from_millis(50);

/// For what a signal sets off that has been heard: so long, and then so many turns of all others.
const SIGNAL_TIME: Duration = Duration::from_millis(5);
const SIGNAL_TURNS: u32 = 64;

/// What a node has for as long as it runs, by whatever program.
#[derive(Debug)]
pub(crate) struct Estate {
    pub(crate) claim: Claim,
    pub(crate) instance: Instance,
    pub(crate) meta: TcpListener,
    /// As it was asked for.
    pub(crate) meta_address: SocketAddr,
    pub(crate) data: PathBuf,
    pub(crate) executable: PathBuf,
    /// The control socket of who supervises the node: its standard input.
    pub(crate) supervisor: Option<UnixStream>,
    pub(crate) started: Instant,
    pub(crate) came: Option<Came>,
}

/// How a node has come to this program.
#[derive(Debug)]
pub(crate) struct Came {
    pub(crate) status: UpgradeStatus,
    /// Why it came back.
    pub(crate) returned: Option<String>,
    pub(crate) was_ready: bool,
    /// The program that it came from.
    image: OwnedFd,
}

impl Came {
    pub(crate) fn by(succession: &Succession, image: OwnedFd) -> Self {
        let Handover { upgrade, returned, was_ready, .. } = &succession.handover;
        Self { status: upgrade.clone(), returned: returned.clone(), was_ready: *was_ready, image }
    }
}

/// The upgrades of a node.
#[derive(Debug)]
pub(crate) struct Upgrades {
    /// One at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    last: Mutex<Option<UpgradeStatus>>,
    /// For a node of a single process, whose code has to end first.
    over: (Trigger, Drain),
    /// As it was rehearsed.
    rehearsed: Mutex<Option<Fingerprint>>,
    /// Whether the meta port is served.
    open: watch::Sender<bool>,
}

impl Upgrades {
    pub(crate) fn new(last: Option<UpgradeStatus>) -> Self {
        Self {
            turn: Arc::default(),
            last: Mutex::new(last),
            over: Drain::new(),
            rehearsed: Mutex::default(),
            open: watch::Sender::new(true),
        }
    }

    /// Whether the meta port should be served: not for the moment in which another program takes over.
    pub(crate) fn open(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Has no other upgrade begin for as long as this is kept.
    pub(crate) async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// How the last one went, or goes.
    pub(crate) fn last(&self) -> Option<UpgradeStatus> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts when a node of a single process should end its code, for another program to run it.
    pub(crate) fn over(&self) -> &Drain {
        &self.over.1
    }

    fn note(&self, status: UpgradeStatus) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    fn end(&self, error: Option<String>) {
        let progress = if error.is_some() { Progress::Failed } else { Progress::Done };
        match (self.last(), &error) {
            (Some(UpgradeStatus { from, .. }), None) => info!(from, to = VERSION, "runs by another program"),
            (_, Some(error)) => error!(error, "an upgrade failed"),
            (None, None) => {}
        }
        if let Some(status) = self.last() {
            self.note(UpgradeStatus { progress, error, ..status });
        }
    }
}

impl UpgradeStatus {
    fn begun() -> Self {
        Self { at_ms: unix_ms(), progress: Progress::UnderWay, from: VERSION.to_owned(), error: None }
    }
}

/// The program of this process. It may be allowed to execute it, but not to read it.
fn image() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Node {
    /// Has the node go on as the program that stands where its own was started from. Returns once it is sure that it can;
    /// how that goes stands on the status page.
    pub(crate) async fn upgrade(self: &Arc<Self>) -> Result<Outcome, CommandError> {
        if self.should_drain() {
            return Err(ChildError::Draining.into());
        }
        let Ok(turn) = Arc::clone(&self.upgrades().turn).try_lock_owned() else {
            return Err(CommandError::Upgrading);
        };
        let executable = &self.estate().executable;
        info!(executable = %executable.display(), "an upgrade is rehearsed");
        self.upgrades().note(UpgradeStatus::begun());
        if let Err(error) = self.rehearse().await {
            self.upgrades().end(Some(error.to_string()));
            return Err(error.into());
        }
        let node = Arc::clone(self);
        tokio::spawn(async move { node.go_over(turn).await });
        Ok(true.into())
    }

    async fn rehearse(&self) -> Result<(), UpgradeError> {
        let path = &self.estate().executable;
        let program =
            Fingerprint::of(path).map_err(|source| UpgradeError::Program { path: path.clone(), source })?;
        *self.upgrades().rehearsed.lock().unwrap_or_else(PoisonError::into_inner) = Some(program);
        let (handover, descriptors, held) = self.hand_over(None).await?;
        // It takes a while, and is no reason for children to wait.
        drop(held);
        rehearse(path, &handover, &descriptors).await
    }

    async fn go_over(&self, turn: OwnedMutexGuard<()>) {
        match self.body() {
            Body::Children(_) => {
                systemd::reloading();
                let error = self.go_on_as_rehearsed().await;
                systemd::reloaded();
                self.upgrades().end(Some(error.to_string()));
            }
            Body::Solo(_) => {
                // Whatever becomes of it, this program takes no further turn.
                std::mem::forget(turn);
                self.upgrades().over.0.pull();
            }
        }
    }

    /// Returns only where it fails.
    pub(crate) async fn go_on_as_rehearsed(&self) -> UpgradeError {
        let path = &self.estate().executable;
        let rehearsed = *self.upgrades().rehearsed.lock().unwrap_or_else(PoisonError::into_inner);
        match Fingerprint::of(path) {
            Ok(found) if rehearsed == Some(found) => self.go_on_as(path, None).await,
            Ok(_) => UpgradeError::Replaced { path: path.clone() },
            Err(source) => UpgradeError::Program { path: path.clone(), source },
        }
    }

    /// Returns only where it fails.
    pub(crate) async fn go_on_as(&self, program: &Path, returned: Option<String>) -> UpgradeError {
        // Who has come is answered; who comes from here on waits in the socket.
        self.upgrades().open.send_replace(false);
        sleep(ANSWER_TIME).await;
        let error = match self.hand_over(returned).await {
            Ok((handover, descriptors, _held)) => self.execute(program, &handover, &descriptors).await,
            Err(error) => error.into(),
        };
        self.upgrades().open.send_replace(true);
        error
    }

    async fn execute(&self, program: &Path, handover: &Handover, descriptors: &[OwnedFd]) -> UpgradeError {
        // What comes from here on is for the new program. What has come is heard.
        if let Err(error) = signals::hold_all() {
            return error.into();
        }
        sleep(SIGNAL_TIME).await;
        // On a busy machine that time is over in the moment in which a signal is heard: all who hear of it go first.
        for _ in 0..SIGNAL_TURNS {
            yield_now().await;
        }
        let error = if self.should_drain() {
            UpgradeError::Draining
        } else {
            execute(program, handover, descriptors).into()
        };
        match signals::admit() {
            Ok(()) => error,
            Err(error) => error.into(),
        }
    }

    /// Gives the node back to the program that it came from. Returns only where that fails.
    pub(crate) async fn go_back(&self, came: &Came, why: String) -> UpgradeError {
        warn!(why, "goes back to the program before");
        self.go_on_as(&proc_path(&came.image), Some(why)).await
    }

    async fn hand_over(
        &self,
        returned: Option<String>,
    ) -> io::Result<(Handover, Vec<OwnedFd>, Option<Held<'_>>)> {
        let mut packing = Packing::default();
        let (children, held) = match self.body() {
            Body::Children(children) => {
                let (children, held) = children.hand_over(&mut packing).await?;
                (children, Some(held))
            }
            Body::Solo(solo) => (solo.hand_over(&mut packing)?, None),
        };
        let handover = self.handover(children, returned, &mut packing)?;
        Ok((handover, packing.into_descriptors(), held))
    }

    fn handover(
        &self,
        children: ChildrenPart,
        returned: Option<String>,
        packing: &mut Packing,
    ) -> io::Result<Handover> {
        let (estate, about) = (self.estate(), self.running());
        Ok(Handover {
            node: about.node,
            kind: about.kind,
            data: estate.data.clone(),
            meta_address: estate.meta_address,
            instance: estate.instance.id.clone(),
            started_at_ms: about.started_at_ms,
            uptime_ms: estate.started.elapsed().as_millis() as u64,
            was_ready: self.was_ready(),
            supervised: estate.supervisor.is_some(),
            executable: estate.executable.clone(),
            upgrade: self.upgrades().last().unwrap_or_else(UpgradeStatus::begun),
            returned,
            children,
            image: packing.add(image()?)?,
            stdin: packing.add(io::stdin())?,
            lock: packing.add(estate.claim.lock())?,
            hold: packing.add(&*estate.instance.hold)?,
            meta: packing.add(&estate.meta)?,
        })
    }

    /// Ends what an earlier program has begun: goes by this program's configuration and replaces the children, or goes back.
    pub(crate) async fn settle(&self, spec: Spec) {
        let (Some(came), Body::Children(children)) = (&self.estate().came, self.body()) else { return };
        let _turn = self.upgrades().turn().await;
        let adopted = children.adopt(spec).await;
        self.announce(children.addresses());
        let failed = match (adopted, &came.returned) {
            (Ok(_), None) => None,
            (Ok(_), Some(why)) => Some(why.clone()),
            (Err(error), Some(why)) => Some(format!("{why}; and the program before: {error}")),
            (Err(error), None) if self.should_drain() => Some(error.to_string()),
            (Err(error), None) => {
                let lost = self.go_back(came, error.to_string()).await;
                Some(format!("{error}; and it can't go back: {lost}"))
            }
        };
        self.upgrades().end(failed);
        systemd::reloaded();
    }

    /// The same for a node of a single process that has become ready.
    pub(crate) fn settled(&self) {
        if let Some(came) = &self.estate().came {
            if let Err(error) = self.estate().claim.announce(&self.running()) {
                error!(%error, "can't tell where the node listens");
            }
            self.upgrades().end(came.returned.clone());
            systemd::reloaded();
        }
    }
}
