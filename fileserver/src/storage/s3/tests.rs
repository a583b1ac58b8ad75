use http::Method;
use tempfile::TempDir;

use super::*;
use crate::storage::contract_tests::{noise, stage};
use crate::storage::fault_s3::{Fault, FaultS3};

struct Bench {
    server: FaultS3,
    client: S3,
    reference: Reference,
    meta: Meta,
    file: std::path::PathBuf,
    _folder: TempDir,
}

impl Bench {
    async fn new(body: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = FaultS3::start(&folder.path().join("s3"));
        let client = server.client().await;
        let file = folder.path().join("staged");
        let (reference, meta) = stage(&file, body);
        Self { server, client, reference, meta, file, _folder: folder }
    }

    async fn put(&self) -> Result<(), StorageError> {
        self.client.put(&self.reference, &self.meta, &self.file).await
    }

    async fn read(&self) -> Result<Vec<u8>, StorageError> {
        let (_, mut stream) = self.client.open(&self.reference, 0).await?;
        let mut body = Vec::new();
        while let Some(piece) = stream.chunk().await? {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}

#[tokio::test]
async fn row_s3_answering_5xx_is_unavailable_and_never_not_found() {
    let bench = Bench::new(b"hello").await;
    bench.put().await.unwrap();
    bench.server.spoil_all(Some(Fault::Status(503)));
    assert!(matches!(bench.read().await, Err(StorageError::Unavailable(_))));
    assert!(matches!(bench.put().await, Err(StorageError::Unavailable(_))));
    assert_eq!(bench.server.count(&Method::GET), 2, "each try of max_attempts");
}

#[tokio::test]
async fn row_s3_slow_times_out() {
    let bench = Bench::new(b"hello").await;
    bench.put().await.unwrap();
    let bench = Bench { client: bench.server.hasty_client().await, ..bench };
    bench.server.spoil_all(Some(Fault::Hang));
    assert!(matches!(bench.read().await, Err(StorageError::Timeout(_))));
}

#[tokio::test]
async fn row_s3_away_is_unavailable() {
    let bench = Bench::new(b"hello").await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = RawS3 { endpoint: format!("http://{closed}"), ..bench.server.settings() };
    let away = S3::new(&settings.resolve(&mut protoplex_runtime::config::Problems::default())).await;
    assert!(matches!(away.open(&bench.reference, 0).await, Err(StorageError::Unavailable(_))));
}

#[tokio::test]
async fn a_passing_error_is_retried() {
    let bench = Bench::new(b"hello").await;
    bench.server.spoil(Method::PUT, Fault::Status(500));
    bench.put().await.unwrap();
    bench.server.spoil(Method::GET, Fault::Status(503));
    assert_eq!(bench.read().await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_404_that_does_not_name_the_key_is_not_a_not_found() {
    let bench = Bench::new(b"hello").await;
    bench.server.spoil_all(Some(Fault::Status(404)));
    assert!(matches!(bench.read().await, Err(StorageError::Refused(_))));
}

#[tokio::test]
async fn a_wrong_secret_is_refused_by_the_signature() {
    let bench = Bench::new(b"hello").await;
    let settings = RawS3 { secret_key: "guessed".into(), ..bench.server.settings() };
    let wrong = S3::new(&settings.resolve(&mut protoplex_runtime::config::Problems::default())).await;
    let put = wrong.put(&bench.reference, &bench.meta, &bench.file).await;
    assert!(matches!(put, Err(StorageError::Refused(_))), "{put:?}");
}

#[tokio::test]
async fn a_body_cut_in_the_middle_is_an_error_and_can_be_resumed() {
    let body = noise(100_000);
    let bench = Bench::new(&body).await;
    bench.put().await.unwrap();
    bench.server.spoil(Method::GET, Fault::Cut(40_000));
    assert!(matches!(bench.read().await, Err(StorageError::Unavailable(_))));
    let (_, mut rest) = bench.client.open(&bench.reference, 40_000).await.unwrap();
    let mut resumed = Vec::new();
    while let Some(piece) = rest.chunk().await.unwrap() {
        resumed.extend_from_slice(&piece);
    }
    assert_eq!(resumed, body[40_000..]);
}

#[tokio::test]
async fn a_body_that_stalls_times_out() {
    let bench = Bench::new(&noise(100_000)).await;
    bench.put().await.unwrap();
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    bench.server.spoil(Method::GET, Fault::Gate(40_000, gate));
    let bench = Bench { client: bench.server.hasty_client().await, ..bench };
    assert!(matches!(bench.read().await, Err(StorageError::Timeout(_))));
}

#[tokio::test]
async fn a_failed_multipart_upload_is_aborted() {
    let bench = Bench::new(&noise(20 << 20)).await;
    // The POST that begins the upload passes; every part fails at each of its tries.
    for _ in 0..4 {
        bench.server.spoil(Method::PUT, Fault::Status(500));
    }
    assert!(matches!(bench.put().await, Err(StorageError::Unavailable(_))));
    assert_eq!(bench.server.count(&Method::DELETE), 1);
    assert!(matches!(bench.read().await, Err(StorageError::NotFound)));
    bench.put().await.unwrap();
    assert_eq!(bench.read().await.unwrap().len(), 20 << 20);
}

#[tokio::test]
async fn bytes_that_changed_since_they_were_hashed_are_refused_by_the_server() {
    let bench = Bench::new(b"hello").await;
    let part = upload_of_wrong_digest(&bench).await;
    assert!(matches!(part, Err(StorageError::Refused(_))), "{part:?}");
}

async fn upload_of_wrong_digest(bench: &Bench) -> Result<(), StorageError> {
    use base64::Engine;
    let wrong = base64::engine::general_purpose::STANDARD.encode([0; 32]);
    let put = bench.client.uploader.put_object().bucket(&bench.client.bucket).key("x").checksum_sha256(wrong);
    put.body(ByteStream::from_static(b"hello")).send().await.map_err(classify).map(|_| ())
}

#[tokio::test]
async fn an_object_that_is_not_ours_is_damaged() {
    let bench = Bench::new(b"hello").await;
    let put = bench
        .client
        .uploader
        .put_object()
        .bucket(&bench.client.bucket)
        .key(bench.client.key(&bench.reference));
    put.body(ByteStream::from_static(b"hello")).send().await.unwrap();
    assert!(matches!(bench.read().await, Err(StorageError::Damaged(_))));
}

#[tokio::test]
async fn keys_have_the_prefix() {
    let bench = Bench::new(b"hello").await;
    let settings = RawS3 { prefix: "some/".into(), ..bench.server.settings() };
    let prefixed = S3::new(&settings.resolve(&mut protoplex_runtime::config::Problems::default())).await;
    prefixed.put(&bench.reference, &bench.meta, &bench.file).await.unwrap();
    assert!(prefixed.open(&bench.reference, 0).await.is_ok());
    assert!(matches!(bench.read().await, Err(StorageError::NotFound)));
}
