//! One suite of promises, kept by both storages.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use protoplex_runtime::drain::Tasks;

use super::fault_s3::FaultS3;
use super::*;
use crate::cache::Cache;
use crate::digest::hex;
use crate::object::{BODY_OFFSET, Encoding};

/// A storage with nothing in it, and a folder for files to put there.
struct Bench {
    bodies: Bodies,
    staging: TempDir,
    _storage: TempDir,
    _server: Option<FaultS3>,
}

async fn benches() -> Vec<Bench> {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let directory = Bodies::Directory(Directory::new(one.path().join("files")));
    let server = FaultS3::start(two.path());
    let cache = Cache::new(two.path().join("cache"), server.client().await, Tasks::default());
    let s3 = Bodies::S3(cache);
    let bench = |bodies, storage, server| Bench {
        bodies,
        staging: tempfile::tempdir().unwrap(),
        _storage: storage,
        _server: server,
    };
    vec![bench(directory, one, None), bench(s3, two, Some(server))]
}

impl Bench {
    fn stage(&self, name: &str, body: &[u8]) -> (Reference, Meta, PathBuf) {
        let path = self.staging.path().join(name);
        let (reference, meta) = stage(&path, body);
        (reference, meta, path)
    }

    async fn read(&self, reference: &Reference) -> Result<(Meta, Vec<u8>), StorageError> {
        match &self.bodies {
            Bodies::Directory(directory) => {
                let (meta, file) = directory.open(reference).await?;
                let mut body = vec![0; usize::try_from(meta.stored_size).unwrap()];
                file.read_exact_at(&mut body, BODY_OFFSET)?;
                Ok((meta, body))
            }
            Bodies::S3(cache) => {
                let (meta, mut stream) = cache.s3().open(reference, 0).await?;
                let mut body = Vec::new();
                while let Some(piece) = stream.chunk().await? {
                    body.extend_from_slice(&piece);
                }
                Ok((meta, body))
            }
        }
    }
}

/// Writes a file in the one-file form. The second digest is a stand-in: what is tested here does not look at it.
pub(crate) fn stage(path: &Path, body: &[u8]) -> (Reference, Meta) {
    let sha256 = Sha256::digest(body);
    let size = body.len() as u64;
    let meta = Meta {
        size,
        stored_size: size,
        encoding: Encoding::Identity,
        content_type: "text/plain; charset=utf-8".into(),
        stored_sha256: hex(&sha256),
    };
    let file = File::create(path).unwrap();
    file.write_all_at(body, BODY_OFFSET).unwrap();
    file.set_len(BODY_OFFSET + size).unwrap();
    meta.write_to(&file).unwrap();
    (Reference::new(&sha256.into(), &[7; 64]), meta)
}

/// Bytes that repeat nowhere near.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

#[tokio::test]
async fn what_was_put_is_read_back_with_its_meta() {
    for bench in benches().await {
        for (name, body) in [("empty", Vec::new()), ("small", b"hello".to_vec()), ("large", noise(20 << 20))]
        {
            let (reference, meta, path) = bench.stage(name, &body);
            bench.bodies.put(&reference, &meta, &path).await.unwrap();
            assert_eq!(bench.read(&reference).await.unwrap(), (meta, body), "{name}");
        }
    }
}

#[tokio::test]
async fn what_was_never_put_is_not_found() {
    for bench in benches().await {
        let (reference, _, _) = bench.stage("never", b"never put");
        assert!(matches!(bench.read(&reference).await, Err(StorageError::NotFound)));
    }
}

#[tokio::test]
async fn putting_again_changes_nothing_and_the_staged_file_may_go() {
    for bench in benches().await {
        let (reference, meta, path) = bench.stage("twice", b"twice");
        bench.bodies.put(&reference, &meta, &path).await.unwrap();
        bench.bodies.put(&reference, &meta, &path).await.unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(bench.read(&reference).await.unwrap().1, b"twice");
    }
}

#[tokio::test]
async fn an_unfinished_file_is_not_put() {
    for bench in benches().await {
        let (reference, meta, path) = bench.stage("cut", b"cut short");
        File::options().write(true).open(&path).unwrap().set_len(BODY_OFFSET + 3).unwrap();
        assert!(bench.bodies.put(&reference, &meta, &path).await.is_err());
        assert!(matches!(bench.read(&reference).await, Err(StorageError::NotFound)));
    }
}

#[tokio::test]
async fn a_damaged_file_of_the_directory_is_told_and_replaced_by_the_next_put() {
    let bench = benches().await.swap_remove(0);
    let (reference, meta, path) = bench.stage("damaged", b"damaged");
    let place = directory::place(&bench._storage.path().join("files"), &reference);
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::write(&place, b"short").unwrap();
    assert!(matches!(bench.read(&reference).await, Err(StorageError::Damaged(_))));
    bench.bodies.put(&reference, &meta, &path).await.unwrap();
    assert_eq!(bench.read(&reference).await.unwrap().1, b"damaged");
}
