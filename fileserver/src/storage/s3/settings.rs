//! The bucket's part of the configuration, and the client that it makes.

use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation};
use protoplex_runtime::config::Problems;
use serde::{Deserialize, Serialize};

/// `[fileserver.s3]` as it is written. It holds a secret and is not to be printed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawS3 {
    /// Must be given.
    pub bucket: String,
    /// Put in front of each key, e.g. `bodies/`.
    pub prefix: String,
    /// Empty: from the environment (`AWS_REGION`, the instance's metadata).
    pub region: String,
    /// Empty: AWS. Else e.g. `http://127.0.0.1:3900`.
    pub endpoint: String,
    /// Buckets in the path rather than in the host name, as Garage and MinIO want it.
    pub path_style: bool,
    /// Both or neither; neither: from the environment or the instance's role.
    pub access_key: String,
    /// See `access_key`.
    pub secret_key: String,
    /// Tries of a request, the first one included.
    pub max_attempts: u32,
    /// Until a connection stands.
    pub connect_timeout_ms: u64,
    /// One try of a question, until the head of its answer.
    pub read_timeout_ms: u64,
    /// One try to upload a file, or a part of one: up to 16 MiB.
    pub upload_timeout_ms: u64,
    /// Between two pieces of a body that is read.
    pub body_idle_timeout_ms: u64,
}

impl Default for RawS3 {
    fn default() -> Self {
        Self {
            bucket: String::new(),
            prefix: String::new(),
            region: String::new(),
            endpoint: String::new(),
            path_style: false,
            access_key: String::new(),
            secret_key: String::new(),
            max_attempts: 3,
            connect_timeout_ms: 3_000,
            read_timeout_ms: 10_000,
            upload_timeout_ms: 120_000,
            body_idle_timeout_ms: 15_000,
        }
    }
}

/// [`RawS3`], checked. It holds a secret and is not to be printed.
#[derive(Clone)]
pub(crate) struct S3Settings {
    pub(super) bucket: String,
    pub(super) prefix: String,
    region: Option<String>,
    endpoint: Option<String>,
    path_style: bool,
    keys: Option<(String, String)>,
    max_attempts: u32,
    connect_timeout: Duration,
    read_timeout: Duration,
    upload_timeout: Duration,
    pub(super) body_idle_timeout: Duration,
}

impl RawS3 {
    /// Checks the values; what is wrong is noted in `problems`.
    pub(crate) fn resolve(&self, problems: &mut Problems) -> S3Settings {
        if self.bucket.is_empty() {
            problems.add("fileserver.s3.bucket", "the name of a bucket is needed");
        }
        if self.access_key.is_empty() != self.secret_key.is_empty() {
            problems.add(
                "fileserver.s3.access_key",
                "access_key and secret_key go together: give both or neither",
            );
        }
        if !self.endpoint.is_empty()
            && self.endpoint.parse::<http::Uri>().map_or(true, |uri| uri.scheme().is_none())
        {
            problems.add("fileserver.s3.endpoint", "a URL is needed, such as http://127.0.0.1:3900");
        }
        if self.max_attempts == 0 {
            problems.add("fileserver.s3.max_attempts", "at least one try is needed");
        }
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        S3Settings {
            bucket: self.bucket.clone(),
            prefix: self.prefix.clone(),
            region: given(&self.region),
            endpoint: given(&self.endpoint),
            path_style: self.path_style,
            keys: given(&self.access_key).zip(given(&self.secret_key)),
            max_attempts: self.max_attempts,
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            read_timeout: Duration::from_millis(self.read_timeout_ms),
            upload_timeout: Duration::from_millis(self.upload_timeout_ms),
            body_idle_timeout: Duration::from_millis(self.body_idle_timeout_ms),
        }
    }
}

impl S3Settings {
    /// One client to read with and one to upload with: they differ in how long they wait, since to the SDK the sending of
    /// a body is a part of the wait for the answer.
    pub(super) async fn clients(&self) -> (Client, Client) {
        let mut base = aws_config::defaults(BehaviorVersion::latest())
            .retry_config(RetryConfig::standard().with_max_attempts(self.max_attempts));
        if let Some(region) = &self.region {
            base = base.region(Region::new(region.clone()));
        }
        if let Some((access, secret)) = &self.keys {
            base = base.credentials_provider(Credentials::new(access, secret, None, None, "protoplex.toml"));
        }
        let base = base.load().await;
        let mut config = aws_sdk_s3::config::Builder::from(&base)
            .force_path_style(self.path_style)
            // We name a SHA-256 for every body that goes up and check one of every body that comes down. The SDK's own
            // checksums would be a second pass, in a framing that not every S3 understands.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &self.endpoint {
            config = config.endpoint_url(endpoint);
        }
        let client = |timeout| {
            let timeouts = TimeoutConfig::builder()
                .connect_timeout(self.connect_timeout)
                .operation_attempt_timeout(timeout)
                .build();
            Client::from_conf(config.clone().timeout_config(timeouts).build())
        };
        (client(self.read_timeout), client(self.upload_timeout))
    }
}
