//! Where connections come in: the ports, as they come and go, and how many connections there may be.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use protoplex_runtime::context::PortChange;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::warn;

use crate::connection::connection;
use crate::deadline;
use crate::exchange::Service;
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
    connections: RefCell<JoinSet<()>>,
    /// By which each of them can be cut.
    handles: RefCell<HashMap<Id, AbortHandle, FixedState>>,
}

/// Room for the handles of so many connections is kept in any case.
const FEW: usize = 256;

impl<S: Service + 'static> Door<S> {
    pub(crate) fn new(tuning: Tuning, server: Server<S>) -> Self {
        let most = server.limits.max_connections.min(Semaphore::MAX_PERMITS);
        Self {
            server: RefCell::new((tuning.version(), Rc::new(server))),
            tuning,
            permits: Arc::new(Semaphore::new(most)),
            most: Cell::new(most),
            connections: RefCell::default(),
            handles: RefCell::default(),
        }
    }

    /// What a new connection goes by.
    pub(crate) fn server(&self) -> Rc<Server<S>> {
        let mut current = self.server.borrow_mut();
        if current.0 != self.tuning.version() {
            let limits = self.tuning.limits();
            self.permit(limits.max_connections.min(Semaphore::MAX_PERMITS));
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
        let task = connection(stream, peer, port, self.server(), permit);
        self.reap();
        let handle = self.connections.borrow_mut().spawn_local(task);
        self.handles.borrow_mut().insert(handle.id(), handle);
    }

    /// Lets go of the memory that connections had which have ended.
    pub(crate) fn reap(&self) {
        let mut connections = self.connections.borrow_mut();
        while let Some(ended) = connections.try_join_next_with_id() {
            self.forget(ended);
        }
        let mut handles = self.handles.borrow_mut();
        if handles.len() < handles.capacity() / 4 {
            // A burst may have needed many more.
            handles.shrink_to(FEW);
        }
    }

    fn forget(&self, ended: Result<(Id, ()), JoinError>) {
        self.handles.borrow_mut().remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
    }

    /// Returns when all connections have ended. No more may come in.
    pub(crate) async fn empty(&self) {
        let mut connections = self.connections.take();
        while let Some(ended) = connections.join_next_with_id().await {
            self.forget(ended);
        }
    }

    /// Cuts the connections that have no time left in a drain, once it has started. Never ends.
    pub(crate) async fn cut_in_time(&self) {
        let server = self.server();
        server.drain.started().await;
        let mut last = server.drain.since();
        while let Some(at) = last.and_then(|last| server.ledger.tally.next_cut(&server.drain, last)) {
            sleep_until(at).await;
            let is_cut = |connection: &Id| server.ledger.tally.is_cut(&server.drain, *connection, at);
            self.handles.borrow_mut().extract_if(|id, _| is_cut(id)).for_each(|(_, handle)| handle.abort());
            last = Some(at);
        }
        std::future::pending().await
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
    loop {
        // Dropping an accept loses no connection: it stays in the queue.
        let (permit, accepted) = tokio::select! {
            biased;
            (Some(permit), accepted) = async { (permit().await, listener.accept().await) } => (permit, accepted),
            () = drain.started() => break,
        };
        match accepted {
            Ok((stream, peer)) => door.admit(stream, peer, &speaks, permit),
            Err(error) => {
                warn!(%error, "can't accept connections, trying again");
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
    use crate::limits::Limits;
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
            while !door.connections.borrow().is_empty() && begun.elapsed() < Duration::from_secs(10) {
                sleep(Duration::from_millis(100)).await;
            }
            door.connections.borrow().len()
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
