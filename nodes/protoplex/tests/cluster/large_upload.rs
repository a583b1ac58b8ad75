//! One gibibyte in one upload: constant memory, and the digests that other programs make.

use std::io::Read;
use std::process::Command;

use crate::{get, put, start};

const GIBIBYTE: usize = 1 << 30;
/// The most that the child that takes the upload may ever have had in memory.
const MAX_PEAK_RSS_KIB: u64 = 64 << 10;

#[test]
fn a_gibibyte_in_constant_memory_has_the_digests_of_sha256sum_and_openssl() {
    let cluster = start();
    let file = cluster.folder().join("big.iso");
    // A pattern that doesn't compress would take long to make here; openssl's keystream is fast and the same each time.
    let make = format!(
        "openssl enc -aes-128-ctr -K 00112233445566778899aabbccddeeff -iv 00 -in /dev/zero 2>/dev/null | head -c {GIBIBYTE} > '{}'",
        file.display()
    );
    assert!(Command::new("bash").args(["-c", &make]).status().unwrap().success());

    let bearer = format!("Authorization: Bearer {}", cluster.token());
    let url = format!("{}/files/big.iso", cluster.http());
    let answer = protoplex_testkit::curl::curl([
        "-T",
        file.to_str().unwrap(),
        "-H",
        &bearer,
        "--max-time",
        "600",
        &url,
    ]);
    assert_eq!(answer.status, 201, "{answer:?}");
    let stored = answer.json();
    assert_eq!(stored["size"], GIBIBYTE);
    assert_eq!(stored["sha256"], first_word("sha256sum", &[file.to_str().unwrap()]));
    let whirlpool =
        ["dgst", "-provider", "legacy", "-provider", "default", "-whirlpool", "-r", file.to_str().unwrap()];
    assert_eq!(stored["whirlpool"], first_word("openssl", &whirlpool));

    for node in ["fileserver-1", "proxy-1"] {
        for child in [0, 1] {
            let status = status(cluster.child_pid(node, child));
            assert!(status.contains("\nTHP_enabled:\t0\n"), "small memory would take huge pages: {status}");
            let peak = peak_rss_kib(&status);
            println!("peak RSS of {node}:{child}: {peak} KiB");
            assert!(peak < MAX_PEAK_RSS_KIB, "{node}:{child} had {peak} KiB");
        }
    }
    std::fs::remove_file(&file).unwrap();
    let head = get(&url, &["-I"]);
    assert_eq!(head.header("content-length"), Some(GIBIBYTE.to_string().as_str()));
    // And on a small file the same cluster still answers at once.
    assert_eq!(put(&cluster, "/files/small", b"small", &[]).status, 201);
}

fn first_word(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

fn status(pid: u64) -> String {
    let mut status = String::new();
    std::fs::File::open(format!("/proc/{pid}/status")).unwrap().read_to_string(&mut status).unwrap();
    status
}

fn peak_rss_kib(status: &str) -> u64 {
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}
