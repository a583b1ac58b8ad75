//! The digests against those of other programs, and the intake's offsets and resumption.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

/// Sizes around the block sizes of both hashes and around our batches.
const SIZES: [usize; 9] = [0, 1, 63, 64, 65, 4096, BATCH_BYTES - 1, BATCH_BYTES, 3 * BATCH_BYTES + 17];

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i * 31 + i / 251) as u8).collect()
}

async fn intake(body: &[u8], piece: usize) -> (Digests, Vec<u8>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut intake = Intake::new(Arc::new(file.reopen().unwrap()), 5, 0, Hashers::default());
    for piece in body.chunks(piece) {
        intake.write(piece).await.unwrap();
    }
    assert_eq!(intake.received(), body.len() as u64);
    let digests = intake.finish().await.unwrap();
    let written = std::fs::read(file.path()).unwrap();
    (digests, written.get(5..).unwrap_or_default().to_vec())
}

/// The first word that a digest program prints for this input.
fn other_program(program: &str, arguments: &[&str], body: &[u8]) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    child.stdin.take().unwrap().write_all(body).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program}");
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[tokio::test]
async fn digests_equal_those_of_sha256sum_and_openssl() {
    let whirlpool = ["dgst", "-provider", "legacy", "-provider", "default", "-whirlpool", "-r"];
    for size in SIZES {
        let body = content(size);
        let (digests, written) = intake(&body, 10_000).await;
        assert_eq!(hex(&digests.sha256), other_program("sha256sum", &[], &body), "{size} bytes");
        assert_eq!(hex(&digests.whirlpool), other_program("openssl", &whirlpool, &body), "{size} bytes");
        assert!(written == body, "{size} bytes on disk");
    }
}

#[tokio::test]
async fn the_size_of_the_pieces_changes_nothing() {
    let body = content(2 * BATCH_BYTES + 3);
    let whole = intake(&body, usize::MAX >> 1).await;
    for piece in [977, BATCH_BYTES, BATCH_BYTES + 1] {
        assert!(intake(&body, piece).await == whole, "pieces of {piece}");
    }
}

#[tokio::test]
async fn a_saved_state_goes_on_where_it_was() {
    let body = content(BATCH_BYTES + 1000);
    let expected = intake(&body, 4096).await;
    for cut in [0, 1, 64, 100, BATCH_BYTES, body.len()] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut first = Intake::new(Arc::new(file.reopen().unwrap()), 5, 0, Hashers::default());
        first.write(&body[..cut]).await.unwrap();
        let saved = serde_json::to_string(&first.settle().await.unwrap().save()).unwrap();
        drop(first);

        let hashers = Hashers::restore(&serde_json::from_str(&saved).unwrap()).unwrap();
        let mut second = Intake::new(Arc::new(file.reopen().unwrap()), 5, cut as u64, hashers);
        second.write(&body[cut..]).await.unwrap();
        assert_eq!(second.finish().await.unwrap(), expected.0, "cut at {cut}");
        assert!(std::fs::read(file.path()).unwrap()[5..] == body);
    }
}

#[test]
fn a_damaged_state_is_refused() {
    let good = Hashers::default().save();
    for bad in ["", "!", "AAAA"] {
        assert!(Hashers::restore(&HasherState { sha256: bad.to_owned(), ..good.clone() }).is_err());
        assert!(Hashers::restore(&HasherState { whirlpool: bad.to_owned(), ..good.clone() }).is_err());
    }
}

#[tokio::test]
async fn a_failed_write_is_told_and_stays_failed() {
    let read_only = File::open("/proc/self/stat").unwrap();
    let mut intake = Intake::new(Arc::new(read_only), 0, 0, Hashers::default());
    intake.write(b"some bytes").await.unwrap();
    assert!(intake.settle().await.is_err());
    assert!(intake.write(&content(BATCH_BYTES)).await.is_err());
}
