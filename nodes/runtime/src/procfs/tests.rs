//! What the kernel says of this very process.

use std::net::TcpListener;

use super::*;

#[test]
fn a_process_uses_something_until_it_has_ended() {
    let usage = usage(std::process::id()).unwrap();
    assert!(
        usage.resident_bytes > 100 << 10 && usage.open_files > 2 && usage.cpu_seconds >= 0.0,
        "{usage:?}"
    );
    assert_eq!(super::usage(u32::MAX), None);
    let listed = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    // The list itself is open while it is counted, and other tests of this process open and close theirs.
    assert!(usage.open_files.abs_diff(listed) <= 64, "{} {listed}", usage.open_files);
    assert!(load_average() >= 0.0);
}

#[test]
fn who_listens_is_found_by_its_address() {
    let here = format!(" (pid {})", std::process::id());
    for address in ["127.0.0.1:0", "0.0.0.0:0"] {
        let socket = TcpListener::bind(address).unwrap();
        let port = socket.local_addr().unwrap().port();
        for asked in ["127.0.0.1", "0.0.0.0"] {
            let found = listener(format!("{asked}:{port}").parse().unwrap()).unwrap();
            assert!(found.ends_with(&here), "{found}");
        }
    }
}

#[test]
fn addresses_are_written_as_the_kernel_writes_them() {
    if cfg!(target_endian = "little") {
        assert_eq!(kernel_notation("127.0.0.1".parse().unwrap()), "0100007F");
        assert_eq!(kernel_notation("::1".parse().unwrap()), "00000000000000000000000001000000");
    }
}

#[test]
fn whose_the_other_end_of_a_connection_is_is_known_until_it_is_closed() {
    let this_user = rustix::process::geteuid().as_raw();
    for (listens, asked) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
        let socket = TcpListener::bind(listens).unwrap();
        let port = socket.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect((asked, port)).unwrap();
        let (stream, peer) = socket.accept().unwrap();
        let here = stream.local_addr().unwrap();
        assert_eq!(owner(peer, here), Some(this_user), "{listens} {asked}");
        assert_eq!(owner(here, peer), Some(this_user), "{listens} {asked}");
        assert_eq!(owner(peer, SocketAddr::new(here.ip(), 1)), None);
        drop(client);
        assert_eq!(owner(peer, here), None, "nobody's any more, of which the kernel says root's");
    }
}
