//! New connection, full handshake, one GET with `Connection: close`, read to the end; and again.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;

/// After an error, so that a server that is gone is not asked as fast as it can be.
const ERROR_PAUSE: Duration = Duration::from_millis(2);

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    took_us: Vec<u64>,
    errors: u64,
    first_error: Option<String>,
    seconds: f64,
}

/// So many tasks at once, for so long.
pub(crate) async fn run(address: SocketAddr, tasks: usize, seconds: f64, path: &str) -> Result<Tally> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let (connector, request) = (crate::tls::connector()?, Rc::<str>::from(request));
    let tally = Rc::new(RefCell::new(Tally::default()));
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let (connector, request, tally) = (connector.clone(), Rc::clone(&request), Rc::clone(&tally));
            spawn_local(async move {
                while Instant::now() < end {
                    let began = Instant::now();
                    let outcome = visit(&connector, address, &request).await;
                    let failed = outcome.is_err();
                    tally.borrow_mut().add(outcome, began.elapsed());
                    if failed {
                        sleep(ERROR_PAUSE).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    let mut tally = tally.take();
    tally.seconds = start.elapsed().as_secs_f64();
    tally.took_us.sort_unstable();
    Ok(tally)
}

async fn visit(connector: &TlsConnector, address: SocketAddr, request: &str) -> Result<()> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    let mut stream = connector.connect(crate::tls::server_name(), stream).await.context("handshake")?;
    ensure!(stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Full), "the session was resumed");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(4096);
    match stream.read_to_end(&mut answer).await {
        // Some servers close without a close_notify.
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(error).context("read"),
        _ => ensure!(answer.starts_with(b"HTTP/1.1 200"), "not answered with 200"),
    }
    Ok(())
}

impl Tally {
    fn add(&mut self, outcome: Result<()>, took: Duration) {
        match outcome {
            Ok(()) => self.took_us.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }

    fn percentile(&self, percent: usize) -> u64 {
        self.took_us.get(self.took_us.len() * percent / 100).copied().unwrap_or_default()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = serde_json::json!({
            "requests": self.took_us.len(),
            "errors": self.errors,
            "first_error": self.first_error,
            "seconds": self.seconds,
            "p50_us": self.percentile(50),
            "p99_us": self.percentile(99),
        });
        write!(f, "{line}")
    }
}
