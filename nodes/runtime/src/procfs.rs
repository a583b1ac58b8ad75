//! What the kernel tells of processes and sockets in `/proc`.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Usage {
    pub(crate) resident_bytes: u64,
    pub(crate) open_files: u64,
    pub(crate) cpu_seconds: f64,
}

/// What a process uses now; nothing where it has ended.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    let folder = Path::new("/proc").join(pid.to_string());
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything; utime and stime are 14 and 15.
    let mut ticks = stat.rsplit_once(") ")?.1.split(' ').skip(11).map(|field| field.parse::<u64>().ok());
    let ticks = ticks.next()?? + ticks.next()??;
    Some(Usage {
        resident_bytes: resident_bytes(&folder)?,
        open_files: open_files(pid)?,
        cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    })
}

/// How many files a process has open; nothing where it has ended.
pub(crate) fn open_files(pid: u32) -> Option<u64> {
    let folder = Path::new("/proc").join(pid.to_string()).join("fd");
    // Linux 6.2 and later tell the number at once; of a hundred thousand a list takes its time.
    match fs::metadata(&folder).ok()?.len() {
        0 => Some(fs::read_dir(&folder).ok()?.count() as u64),
        count => Some(count),
    }
}

/// What a process that seems stuck does, as far as the kernel tells: its state, and where in the kernel it waits.
pub(crate) fn doing(pid: u32) -> String {
    let folder = Path::new("/proc").join(pid.to_string());
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let stat = read("stat");
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or("?");
    let (wait, call) = (read("wchan"), read("syscall"));
    let (wait, call) = (wait.trim(), call.split(' ').next().unwrap_or_default().trim());
    format!(
        "state {state}, system call {call}, waits in {wait}, kernel stack {}",
        read("stack").trim().replace('\n', " < ")
    )
}

/// What a process, of this folder, has in memory.
pub(crate) fn resident_bytes(folder: &Path) -> Option<u64> {
    let pages: u64 = fs::read_to_string(folder.join("statm")).ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// The machine's load average over one minute.
pub(crate) fn load_average() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").ok();
    load.and_then(|load| load.split(' ').next()?.parse().ok()).unwrap_or_default()
}

/// The process that listens where a socket of this address would have to, as `name (pid N)`, where we may know it.
pub(crate) fn listener(address: SocketAddr) -> Option<String> {
    let inode = listening_inode(address)?;
    let target = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name();
        if !pid.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = |entry: fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == target.as_str())
        };
        if descriptors.flatten().any(holds) {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(format!("{} (pid {})", name.trim_end(), pid.display()));
        }
    }
    None
}

fn listening_inode(address: SocketAddr) -> Option<String> {
    const LISTEN: &str = "0A";
    let wanted = format!(":{:04X}", address.port());
    let (exact, any) = (kernel_notation(address.ip()), |ip: &str| ip.bytes().all(|digit| digit == b'0'));
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = fs::read_to_string(table).unwrap_or_default();
        for row in table.lines().skip(1) {
            let fields: Vec<&str> = row.split_whitespace().collect();
            let [_, local, _, LISTEN, _, _, _, _, _, inode, ..] = fields[..] else {
                continue;
            };
            let Some(ip) = local.strip_suffix(wanted.as_str()) else {
                continue;
            };
            if ip == exact || any(ip) || address.ip().is_unspecified() {
                return Some(inode.to_owned());
            }
        }
    }
    None
}

/// The user whose socket is the other end of a connection within this machine; none where the kernel doesn't tell, as of one
/// that has been closed (it shows root as the owner of those, without an inode).
pub(crate) fn owner(client: SocketAddr, server: SocketAddr) -> Option<u32> {
    let end = |address: SocketAddr, ip| format!("{}:{:04X}", kernel_notation(ip), address.port());
    // A socket for both protocols has its IPv4 connections in the other table, too.
    let both = |address: SocketAddr| match address.ip().to_canonical() {
        IpAddr::V4(ip) => [end(address, ip.into()), end(address, ip.to_ipv6_mapped().into())],
        ip @ IpAddr::V6(_) => [end(address, ip), end(address, ip)],
    };
    let (clients, servers) = (both(client), both(server));
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = fs::read_to_string(table).unwrap_or_default();
        for row in table.lines().skip(1) {
            let mut fields = row.split_whitespace();
            if fields.nth(1).is_some_and(|local| clients.iter().any(|client| client == local))
                && fields.next().is_some_and(|remote| servers.iter().any(|server| server == remote))
                && let (Some(uid), Some(inode)) = (fields.nth(4), fields.nth(1))
                && inode != "0"
            {
                return uid.parse().ok();
            }
        }
    }
    None
}

/// An address as in `/proc/net/tcp`: words of 32 bits in the machine's order.
fn kernel_notation(ip: IpAddr) -> String {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    words.map(|word| format!("{word:08X}")).collect()
}

#[cfg(test)]
mod tests;
