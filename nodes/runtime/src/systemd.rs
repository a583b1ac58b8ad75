//! What systemd is told, and what it gives: readiness, reloads and a watchdog (sd_notify(3)), and sockets that it has bound
//! (sd_listen_fds(3)). Without systemd none of it does anything.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::node::Node;

/// What must not reach the processes that this one starts: they would speak for it.
pub(crate) const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Of those, what tells of the sockets that it gave.
pub(crate) const SOCKETS: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Without a watchdog there is still the line that `systemctl status` shows.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Systemd takes a message within so long, unless it is stuck.
const PATIENCE: Duration = Duration::from_millis(100);

/// The listening sockets that systemd has bound for this process. They are given once.
#[derive(Debug, Default)]
pub(crate) struct Activated(Vec<(SocketAddr, TcpListener)>);

impl Activated {
    /// # Errors
    /// Something else was given.
    pub(crate) fn take() -> io::Result<Self> {
        let mut given = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..given.len() {
            if let Some(socket) = given.take_tcp_listener(index)? {
                socket.set_nonblocking(true)?;
                sockets.push((socket.local_addr()?, socket));
            }
        }
        Ok(Self(sockets))
    }

    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|(given, _)| *given == address)
    }

    /// The socket of this address.
    pub(crate) fn claim(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self.0.iter().position(|(given, _)| *given == address)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Tells of those that nobody has claimed: connections to them would never be accepted.
    pub(crate) fn finish(self) {
        for (address, _) in self.0 {
            warn!(%address, "systemd has a socket for this address, but the configuration doesn't; it is closed");
        }
    }
}

/// To be called while all signals wait: the thread that tells systemd is to hear none.
pub(crate) fn prepare() {
    if is_there() {
        LazyLock::force(&TELLER);
    }
}

/// Keeps systemd told of a node: that it is ready, for the first time; how it is; and, where it wants that, that it is
/// alive. Never ends.
pub(crate) async fn keep_told(node: Arc<Node>) {
    if !is_there() {
        return std::future::pending().await;
    }
    let watchdog = sd_notify::watchdog_enabled();
    if let Some(limit) = watchdog {
        info!(?limit, "watched by systemd");
    }
    // Twice as often as it is asked for, as systemd's manual advises.
    let mut beat =
        interval(watchdog.map_or(STATUS_INTERVAL, |limit| limit / 2).max(Duration::from_millis(1)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut was_ready, mut was_draining) = (node.seen(), false, false);
    loop {
        let status = node.in_words();
        tell_again(&[NotifyState::Status(&status)]);
        if !was_ready && node.is_ready() {
            was_ready = true;
            tell(&[NotifyState::Ready]);
        }
        if !was_draining && node.is_draining() {
            was_draining = true;
            tell(&[NotifyState::Stopping]);
        }
        // Both arms are cancel-safe.
        tokio::select! {
            () = node.changed(&mut seen) => {}
            _ = beat.tick() => if watchdog.is_some() { tell_again(&[NotifyState::Watchdog]) },
        }
    }
}

/// A reload has begun (`Type=notify-reload`).
pub(crate) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// It has ended, however it went.
pub(crate) fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// What has yet to be told. A thread of its own does that: systemd's socket takes few messages at a time, and a node must not
/// stand still because systemd does.
struct Teller {
    messages: Sender<Message>,
    waiting: Arc<AtomicUsize>,
}

struct Message {
    text: String,
    /// Dropped once it is told.
    _told: Sender<()>,
}

impl Teller {
    fn start() -> Self {
        let (messages, to_tell) = channel::<Message>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        thread::spawn(move || {
            for message in to_tell {
                if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&message.text)]) {
                    warn!(%error, "systemd can't be told");
                }
                left.fetch_sub(1, Ordering::Relaxed);
            }
        });
        Self { messages, waiting }
    }

    /// Answers with what ends once it is told.
    fn tell(&self, states: &[NotifyState<'_>]) -> Receiver<()> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let (_told, told) = channel();
        let text = states.iter().map(|state| format!("{state}\n")).collect();
        // The thread never ends.
        let _ = self.messages.send(Message { text, _told });
        told
    }
}

static TELLER: LazyLock<Teller> = LazyLock::new(Teller::start);

/// Without systemd there is nobody to tell, which is no error.
fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

fn tell(states: &[NotifyState<'_>]) {
    if is_there() {
        // Another program may take this one's place next, and its threads end.
        let _ = TELLER.tell(states).recv_timeout(PATIENCE);
    }
}

/// What will be told again: it is left out while anything else waits.
fn tell_again(states: &[NotifyState<'_>]) {
    if is_there() && TELLER.waiting.load(Ordering::Relaxed) == 0 {
        TELLER.tell(states);
    }
}
