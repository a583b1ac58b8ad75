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
