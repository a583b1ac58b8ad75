//! What one program of a node leaves to the next: a page of JSON, and descriptors, which it names by their number.
//!
//! The next one may be older or newer: what it does not know it ignores, and what may be missing has a default.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use super::UpgradeStatus;
use crate::control::Report;
use crate::drain::Drained;
use crate::sockets::{Handed, Socket};
use crate::supervisor::{Inherited, Past, Snapshot};

/// The kernel takes no more with one message.
const DESCRIPTORS: usize = 253;
/// The longest page that is believed.
const PAGE_BYTES: u64 = 64 << 20;

/// The number of a descriptor that comes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Descriptor(u32);

impl Descriptor {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A node, all of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Handover {
    pub(crate) node: String,
    pub(crate) kind: String,
    pub(crate) data: PathBuf,
    /// As it was asked for.
    pub(crate) meta_address: SocketAddr,
    pub(crate) instance: String,
    pub(crate) started_at_ms: u64,
    pub(crate) uptime_ms: u64,
    pub(crate) was_ready: bool,
    /// Whether standard input is the control socket of a supervisor.
    pub(crate) supervised: bool,
    /// Where the program was started from.
    pub(crate) executable: PathBuf,
    pub(crate) upgrade: UpgradeStatus,
    /// Why the node comes back to its old program.
    #[serde(default)]
    pub(crate) returned: Option<String>,
    pub(crate) children: ChildrenPart,
    /// The program that hands over.
    pub(crate) image: Descriptor,
    pub(crate) stdin: Descriptor,
    /// Of the node's name.
    pub(crate) lock: Descriptor,
    /// Of the instance.
    pub(crate) hold: Descriptor,
    pub(crate) meta: Descriptor,
}

/// The sockets of a node, and who accepts on them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ChildrenPart {
    pub(crate) ports: Vec<PortPart>,
    pub(crate) places: Vec<PlacePart>,
    /// Who has no place any more.
    pub(crate) leaving: Vec<ProcessPart>,
    /// The sockets were told to refuse.
    pub(crate) refusing: bool,
    /// What became of the work of all processes that there have been.
    #[serde(default)]
    pub(crate) drained: Drained,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PortPart {
    pub(crate) name: String,
    pub(crate) wanted: SocketAddr,
    pub(crate) address: SocketAddr,
    pub(crate) common: bool,
    pub(crate) sockets: Vec<SocketPart>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PlacePart {
    pub(crate) own: Vec<SocketPart>,
    /// None in a node of a single process.
    pub(crate) process: Option<ProcessPart>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SocketPart {
    handed: Handed,
    socket: Descriptor,
}

/// A supervised process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProcessPart {
    name: String,
    past: Past,
    retired: bool,
    report: Report,
    #[serde(default)]
    real: Option<RealPart>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RealPart {
    pid: u32,
    age_ms: u64,
    control: Descriptor,
    unread: Vec<u8>,
    given: BTreeSet<u64>,
}

/// Descriptors that are gathered.
#[derive(Debug, Default)]
pub(crate) struct Packing(Vec<OwnedFd>);

/// Those that have come, each taken once.
#[derive(Debug)]
pub(crate) struct Descriptors(Vec<Option<OwnedFd>>);

impl Packing {
    pub(crate) fn add(&mut self, descriptor: impl AsFd) -> io::Result<Descriptor> {
        self.push(descriptor.as_fd().try_clone_to_owned()?)
    }

    fn push(&mut self, descriptor: OwnedFd) -> io::Result<Descriptor> {
        let number = u32::try_from(self.0.len()).map_err(io::Error::other)?;
        self.0.push(descriptor);
        Ok(Descriptor(number))
    }

    pub(crate) fn socket(&mut self, socket: &Socket) -> io::Result<SocketPart> {
        Ok(SocketPart { handed: socket.handed.clone(), socket: self.add(&socket.listener)? })
    }

    pub(crate) fn sockets(&mut self, sockets: &[Arc<Socket>]) -> io::Result<Vec<SocketPart>> {
        sockets.iter().map(|socket| self.socket(socket)).collect()
    }

    pub(crate) fn process(&mut self, snapshot: Snapshot) -> io::Result<ProcessPart> {
        let Snapshot { name, past, retired, report, incarnation } = snapshot;
        let mut real = |Inherited { pid, age, control, unread, given }| {
            let age_ms = age.as_millis() as u64;
            io::Result::Ok(RealPart { pid, age_ms, control: self.push(control)?, unread, given })
        };
        let real = incarnation.map(&mut real).transpose()?;
        Ok(ProcessPart { name, past, retired, report, real })
    }

    pub(crate) fn into_descriptors(self) -> Vec<OwnedFd> {
        self.0
    }
}

impl Descriptors {
    pub(crate) fn copied(descriptors: &[OwnedFd]) -> io::Result<Self> {
        descriptors.iter().map(|one| one.try_clone().map(Some)).collect::<Result<_, _>>().map(Self)
    }

    /// # Errors
    /// There is none of this number, or it was taken.
    pub(crate) fn take(&mut self, Descriptor(number): Descriptor) -> io::Result<OwnedFd> {
        let taken = self.0.get_mut(number as usize).and_then(Option::take);
        taken.ok_or_else(|| invalid("a descriptor that is named has not come"))
    }

    pub(crate) fn socket(&mut self, part: &SocketPart) -> io::Result<Arc<Socket>> {
        Ok(Socket::resumed(part.handed.clone(), TcpListener::from(self.take(part.socket)?)))
    }

    pub(crate) fn sockets(&mut self, parts: &[SocketPart]) -> io::Result<Vec<Arc<Socket>>> {
        parts.iter().map(|part| self.socket(part)).collect()
    }

    pub(crate) fn process(&mut self, part: &ProcessPart) -> io::Result<Snapshot> {
        let mut real = |real: &RealPart| {
            io::Result::Ok(Inherited {
                pid: real.pid,
                age: Duration::from_millis(real.age_ms),
                control: self.take(real.control)?,
                unread: real.unread.clone(),
                given: real.given.clone(),
            })
        };
        Ok(Snapshot {
            name: part.name.clone(),
            past: part.past.clone(),
            retired: part.retired,
            report: part.report.clone(),
            incarnation: part.real.as_ref().map(&mut real).transpose()?,
        })
    }
}

impl Handover {
    /// Sends all of it on a new socket, without waiting: what comes along waits in the socket.
    pub(crate) fn send(&self, descriptors: &[OwnedFd], socket: &UnixStream) -> io::Result<()> {
        let mut page = File::from(memfd_create("handover", MemfdFlags::CLOEXEC)?);
        page.write_all(&serde_json::to_vec(self)?)?;
        page.rewind()?;
        let all: Vec<_> = [page.as_fd()].into_iter().chain(descriptors.iter().map(AsFd::as_fd)).collect();
        for some in all.chunks(DESCRIPTORS) {
            let message = SendAncillaryMessage::ScmRights(some);
            let mut space = vec![MaybeUninit::uninit(); message.size()];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(message);
            sendmsg(
                socket,
                &[IoSlice::new(b".")],
                &mut ancillary,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            )?;
        }
        socket.shutdown(std::net::Shutdown::Write)
    }

    /// Receives what [`Handover::send`] sent; waits for it.
    pub(crate) fn receive(socket: &UnixStream) -> io::Result<(Self, Vec<OwnedFd>)> {
        let mut descriptors = Vec::new();
        loop {
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let byte = &mut [0];
            let received =
                recvmsg(socket, &mut [IoSliceMut::new(byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(came) = message {
                    descriptors.extend(came);
                }
            }
            if received == 0 {
                break;
            }
        }
        if descriptors.is_empty() {
            return Err(invalid("nothing was handed over"));
        }
        let mut page = Vec::new();
        File::from(descriptors.remove(0)).take(PAGE_BYTES).read_to_end(&mut page)?;
        Ok((serde_json::from_slice(&page)?, descriptors))
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
