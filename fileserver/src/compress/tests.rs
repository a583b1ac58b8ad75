//! What is worth compressing, and that the compressed form is the body.

use std::io::Read;

use flate2::read::GzDecoder;
use rand::RngExt;
use tempfile::NamedTempFile;

use super::*;

fn noise(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    rand::rng().fill(&mut bytes[..]);
    bytes
}

fn text(size: usize) -> Vec<u8> {
    b"the quick brown fox jumps over the lazy dog, ".iter().copied().cycle().take(size).collect()
}

async fn pass(body: &[u8]) -> (Option<Packed>, Vec<u8>) {
    let (mut source, target) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
    source.write_all(b"header").unwrap();
    source.write_all(body).unwrap();
    let packed = Pass {
        source: Arc::new(source.reopen().unwrap()),
        source_at: 6,
        size: body.len() as u64,
        target: Arc::new(target.reopen().unwrap()),
        target_at: 3,
    }
    .run()
    .await
    .unwrap();
    let written = std::fs::read(target.path()).unwrap();
    (packed, written.get(3..).unwrap_or_default().to_vec())
}

#[test]
fn the_type_and_the_trial_decide() {
    let (text, noise) = (text(TRIAL_BYTES), noise(TRIAL_BYTES));
    let size = TRIAL_BYTES as u64;
    for content_type in
        ["text/html; charset=utf-8", "application/octet-stream", "image/svg+xml", "audio/wav", ""]
    {
        assert!(promises(content_type, size, &text), "{content_type}");
        assert!(!promises(content_type, size, &noise), "{content_type}");
    }
    for content_type in
        ["image/png", "IMAGE/JPEG", "video/mp4", "audio/mpeg", "application/zip", "font/woff2"]
    {
        assert!(!promises(content_type, size, &text), "{content_type}");
    }
}

#[test]
fn small_bodies_stay_as_they_are() {
    assert!(!promises("text/plain", 0, b""));
    assert!(!promises("text/plain", 255, &text(255)));
    assert!(promises("text/plain", 256, &text(256)));
}

#[tokio::test]
async fn the_compressed_form_is_the_body() {
    let body = text(3 * STEP_BYTES + 5);
    let (packed, written) = pass(&body).await;
    let packed = packed.unwrap();
    assert_eq!(packed.size, written.len() as u64);
    assert_eq!(packed.sha256[..], Sha256::digest(&written)[..]);
    let mut unpacked = Vec::new();
    GzDecoder::new(&written[..]).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == body);
}

#[tokio::test]
async fn the_same_body_gives_the_same_form() {
    let body = text(100_000);
    assert_eq!(pass(&body).await.0, pass(&body).await.0);
}

#[tokio::test]
async fn a_pass_that_does_not_pay_in_the_end_is_given_up() {
    let mut body = text(TRIAL_BYTES);
    body.extend(noise(4 * STEP_BYTES));
    assert!(promises("application/octet-stream", body.len() as u64, &body[..TRIAL_BYTES]));
    assert_eq!(pass(&body).await.0, None);
}
