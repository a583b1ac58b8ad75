//! Where connections come in: the ports, as they come and go, and how many connections there may be.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use protoplex_runtime::context::PortChange;
use protoplex_runtime::descriptors;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::connection::connection;
use crate::deadline;
use crate::exchange::Service;
use crate::limits::Limits;
use crate::ports::{Listener, Port, Ports, Tuning};
use crate::serve::Server;

/// After an error of `accept`, which as a rule says that there are no file descriptors left: until some are.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// So many are accepted on a port at most after the drain has started. Others may be accepting on it, too.
const LAST_CONNECTIONS: usize = 4096;
/// When none has come for so long, none waits.
const LAST_WAIT: Duration = Duration::from_millis(5);

/// What lets connections in.
pub(crate) struct Door<S> {
    tuning: Tuning,
    /// What new connections get, and the version of the tuning that it is made of.
    server: RefCell<(u64, Rc<Server<S>>)>,
    permits: Arc<Semaphore>,
    /// So many were given out.
    most: Cell<usize>,
    connections: Connections,
}

impl<S: Service + 'static> Door<S> {
    pub(crate) fn new(tuning: Tuning, server: Server<S>) -> Self {
        let most = most(&server.limits);
        Self {
            server: RefCell::new((tuning.version(), Rc::new(server))),
            tuning,
            permits: Arc::new(Semaphore::new(most)),
            most: Cell::new(most),
            connections: Connections::default(),
        }
    }

    /// What a new connection goes by.
    pub(crate) fn server(&self) -> Rc<Server<S>> {
        let mut current = self.server.borrow_mut();
        if current.0 != self.tuning.version() {
            let limits = self.tuning.limits();
            self.permit(most(&limits));
            *current = (self.tuning.version(), Rc::new(current.1.under(limits)));
        }
        Rc::clone(&current.1)
    }

    /// Another number of connections. Where it is lower than what there are, it comes true as those end.
    fn permit(&self, most: usize) {
        let before = self.most.replace(most);
        match most.checked_sub(before) {
            Some(more) => self.permits.add_permits(more),
            None => {
                let fewer = before - most;
                let missing = fewer - self.permits.forget_permits(fewer);
                let permits = Arc::clone(&self.permits);
                tokio::task::spawn_local(async move {
                    if let Ok(gone) = permits.acquire_many_owned(missing as u32).await {
                        gone.forget();
                    }
                });
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr, speaks: &Speaks, permit: OwnedSemaphorePermit) {
        let port = speaks.now(&self.tuning);
        if matches!(speaks, Speaks::Tls) && port.tls.is_none() {
            // The certificate of a new port comes right behind it. In the clear it is never served.
            return;
        }
        self.connections.spawn(connection(stream, peer, port, self.server(), permit));
    }

    /// Lets go of the memory that connections had which have ended.
    pub(crate) fn reap(&self) {
        self.connections.reap();
    }

    /// Returns when all connections have ended. No more may come in.
    pub(crate) async fn empty(&self) {
        self.connections.empty().await;
    }

    /// Cuts the connections that have no time left in a drain, once it has started. Never ends.
    pub(crate) async fn cut_in_time(&self) {
        let server = self.server();
        server.drain.started().await;
        let mut last = server.drain.since();
        while let Some(at) = last.and_then(|last| server.ledger.tally.next_cut(&server.drain, last)) {
            sleep_until(at).await;
            self.connections.cut(|connection| server.ledger.tally.is_cut(&server.drain, connection, at));
            last = Some(at);
        }
        std::future::pending().await
    }
}

/// How many connections there may be: as many as are allowed, and no more than leave files for what they ask for.
fn most(limits: &Limits) -> usize {
    let open = usize::try_from(descriptors::for_connections()).unwrap_or(usize::MAX);
    limits.max_connections.min(open).min(Semaphore::MAX_PERMITS)
}

/// The tasks of connections. They end with it. A [`JoinSet`], which can't end some of them, takes ten times the memory for
/// each.
#[derive(Default)]
struct Connections {
    alive: TaskTracker,
    /// Also of some that have ended, and whose memory they hold.
    handles: RefCell<Vec<AbortHandle>>,
}

/// So many that have ended are kept at most, beyond as many as are alive.
const ENDED: usize = 64;

impl Connections {
    fn spawn(&self, connection: impl Future<Output = ()> + 'static) {
        if self.handles.borrow().len() >= 2 * self.alive.len() + ENDED {
            self.reap();
        }
        self.handles.borrow_mut().push(self.alive.spawn_local(connection).abort_handle());
    }

    fn reap(&self) {
        let mut handles = self.handles.borrow_mut();
        handles.retain(|handle| !handle.is_finished());
        if handles.len() < handles.capacity() / 4 {
            // A burst may have needed many more.
            handles.shrink_to(ENDED);
        }
    }

    /// Ends those for which `is_cut` says so.
    fn cut(&self, is_cut: impl Fn(Id) -> bool) {
        self.reap();
        self.handles
            .borrow_mut()
            .extract_if(.., |handle| is_cut(handle.id()))
            .for_each(|handle| handle.abort());
    }

    /// Returns when all have ended. No more may come.
    async fn empty(&self) {
        self.alive.close();
        self.alive.wait().await;
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.handles.take().iter().for_each(AbortHandle::abort);
    }
}

/// Accepts on all ports, as they come and go, until the drain starts.
pub(crate) async fn accept_all<S: Service + 'static>(ports: Ports, door: &Rc<Door<S>>) -> io::Result<()> {
    let drain = door.server().drain.clone();
    let (mut accepting, mut given) = (JoinSet::new(), BTreeMap::new());
    let mut ports = ports;
    for Listener { socket, tls, fronts } in std::mem::take(&mut ports.fixed) {
        let speaks = Speaks::Fixed(Rc::new(Port { tls, fronts }));
        accepting.spawn_local(accept(listen(socket)?, speaks, Rc::clone(door)));
    }
    loop {
        // Every arm is cancel-safe.
        let changes = tokio::select! {
            biased;
            () = drain.started() => break,
            changes = ports.changes() => changes,
        };
        while accepting.try_join_next().is_some() {}
        for change in changes {
            match change {
                PortChange::Open { id, name, socket } => {
                    let speaks = if ports.is_encrypted(&name) { Speaks::Tls } else { Speaks::Plain };
                    let task = accepting.spawn_local(accept(listen(socket)?, speaks, Rc::clone(door)));
                    given.insert(id, task);
                }
                // Dropping an accept loses no connection: it stays in the queue, and somebody else accepts it.
                PortChange::Close { id } => given.remove(&id).into_iter().for_each(|task| task.abort()),
            }
        }
    }
    // Those that are idle go soon, and make room for who waits.
    deadline::wake_all();
    while accepting.join_next().await.is_some() {}
    Ok(())
}

fn listen(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

/// How a port is spoken to.
enum Speaks {
    Fixed(Rc<Port>),
    /// As the tuning of the moment has it, as the next.
    Plain,
    Tls,
}

impl Speaks {
    fn now(&self, tuning: &Tuning) -> Rc<Port> {
        match self {
            Self::Fixed(port) => Rc::clone(port),
            Self::Plain => tuning.plain(),
            Self::Tls => tuning.encrypted(),
        }
    }
}

/// Accepts on one port while there are permits, until the drain starts. Then what waits is taken in, too, as soon as there
/// is room: nobody else might.
async fn accept<S: Service + 'static>(listener: TcpListener, speaks: Speaks, door: Rc<Door<S>>) {
    let drain = door.server().drain.clone();
    // The semaphore is never closed, so there is always a permit in the end.
    let permit = async || {
        let permit = Arc::clone(&door.permits).acquire_owned().await.ok();
        door.server().room().await;
        permit
    };
    let mut fails = false;
    loop {
        // Dropping an accept loses no connection: it stays in the queue.
        let (permit, accepted) = tokio::select! {
            biased;
            (Some(permit), accepted) = async { (permit().await, listener.accept().await) } => (permit, accepted),
            () = drain.started() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                if std::mem::take(&mut fails) {
                    info!("connections are accepted again");
                }
                door.admit(stream, peer, &speaks, permit);
            }
            Err(error) => {
                if !std::mem::replace(&mut fails, true) {
                    warn!(%error, "can't accept connections, trying again");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
        if drain.is_draining() {
            break;
        }
    }
    for _ in 0..LAST_CONNECTIONS {
        let Some(permit) = permit().await else { return };
        match timeout(LAST_WAIT, listener.accept()).await {
            Ok(Ok((stream, peer))) => door.admit(stream, peer, &speaks, permit),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use protoplex_runtime::drain::Drain;
    use tokio::task::LocalSet;

    use super::*;
    use crate::serve::show;
    use crate::surroundings::Surroundings;
    use crate::{AccessLog, Answer, Body, Exchange};

    struct Nothing;

    impl Service for Nothing {
        async fn answer(&self, _: &Rc<Exchange>, _: Body) -> Answer {
            unreachable!("nobody asks")
        }
    }

    /// Their tasks were kept until another connection came.
    #[tokio::test(start_paused = true)]
    async fn after_a_burst_the_memory_of_its_connections_is_free_although_nobody_comes() {
        const BURST: usize = 100;
        let (_trigger, drain) = Drain::new();
        let tuning = Tuning::from(Limits::default());
        let surroundings = Surroundings::from(drain);
        let server = Server::new(Rc::new(Nothing), tuning.limits(), AccessLog::off(), &surroundings);
        let door = Door::new(tuning, server);
        let local = LocalSet::new();
        let burst = async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            for _ in 0..BURST {
                let _gone = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let (stream, peer) = listener.accept().await.unwrap();
                let permit = Arc::clone(&door.permits).acquire_owned().await.unwrap();
                door.admit(stream, peer, &Speaks::Plain, permit);
            }
            let begun = Instant::now();
            let handles = || door.connections.handles.borrow().len();
            while handles() > 0 && begun.elapsed() < Duration::from_secs(10) {
                sleep(Duration::from_millis(100)).await;
            }
            handles()
        };
        let left = local.run_until(async {
            tokio::select! {
                left = burst => left,
                () = show(&surroundings, &door) => unreachable!("it never ends"),
            }
        });
        assert_eq!(left.await, 0);
    }
}
