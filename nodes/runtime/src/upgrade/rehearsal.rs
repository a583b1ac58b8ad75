//! Whether another program could go on with a node: it is started beside the node, is told everything, and says so.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Handover, REHEARSAL, UpgradeError};
use crate::control::VARIABLE;
use crate::systemd;

/// What a program says that could.
pub(super) const CONSENT: &[u8] = b"ready\n";
/// By when.
const REHEARSAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Of what it says else, as the reason why it doesn't.
const REASON_BYTES: u64 = 4 << 10;

/// # Errors
/// The program can't be executed, says why it could not go on, or nothing in time.
pub(crate) async fn rehearse(
    program: &Path,
    handover: &Handover,
    descriptors: &[OwnedFd],
) -> Result<(), UpgradeError> {
    let (ours, theirs) = UnixStream::pair()?;
    handover.send(descriptors, &ours)?;
    let process = start(program, theirs)
        .map_err(|source| UpgradeError::Program { path: program.to_owned(), source })?;
    ours.set_nonblocking(true)?;
    let ours = tokio::net::UnixStream::from_std(ours)?;
    let silent = || UpgradeError::Silent { path: program.to_owned(), seconds: REHEARSAL_TIMEOUT.as_secs() };
    // Where it takes too long it is killed: its handle is dropped.
    let (answer, reason, status) =
        timeout(REHEARSAL_TIMEOUT, listen(process, ours)).await.map_err(|_| silent())??;
    if answer == CONSENT && status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&reason).trim().to_owned();
    let said = if reason.is_empty() { format!("it ended with {status}, without a word") } else { reason };
    Err(UpgradeError::Refused { path: program.to_owned(), said })
}

fn start(program: &Path, socket: UnixStream) -> io::Result<Child> {
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env(VARIABLE, REHEARSAL);
    for variable in systemd::VARIABLES {
        command.env_remove(variable);
    }
    command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::null()).stderr(Stdio::piped());
    command.kill_on_drop(true).spawn()
}

/// What it answers, what it says else, and how it ends.
async fn listen(
    mut process: Child,
    mut socket: tokio::net::UnixStream,
) -> io::Result<(Vec<u8>, Vec<u8>, ExitStatus)> {
    let mut stderr = process.stderr.take();
    let reason = async {
        match &mut stderr {
            Some(stderr) => read(stderr).await,
            None => Ok(Vec::new()),
        }
    };
    // What says more than that is not waited for: its pipe is closed. One that ends without having read is no answer.
    let answer = async { Ok(read(&mut socket).await.unwrap_or_default()) };
    let (answer, reason) = tokio::try_join!(answer, reason)?;
    drop(stderr);
    Ok((answer, reason, process.wait().await?))
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(REASON_BYTES).read_to_end(&mut bytes).await?;
    Ok(bytes)
}
