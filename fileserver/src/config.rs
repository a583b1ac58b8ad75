//! The section `[fileserver]` of the configuration: as written ([`Raw`]), and checked ([`Config`]).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use protoplex_http::access_log::{Format, Target};
use protoplex_http::public::Certificate;
use protoplex_http::{Fronts, RawLimits, RawProxyProtocol, upstream};
use protoplex_runtime::config::{Problems, children, loopback};
use serde::{Deserialize, Serialize};

pub use crate::storage::s3::RawS3;

/// Where bodies are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// In `files/` of the data directory: for a cluster on one machine.
    Directory,
    /// In the bucket of `[fileserver.s3]`, with a disk cache in `cache/` of the data directory.
    S3,
}

/// `[fileserver]`, as written.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Where HTTP is served.
    pub http: Vec<SocketAddr>,
    /// Where HTTPS is served.
    pub https: Vec<SocketAddr>,
    /// Where each child has a port of its own, which proxies must reach and nobody else should.
    pub address: IpAddr,
    /// Child processes; one for each processor where it is left out.
    pub children: Option<u32>,
    /// The HTTPS ports' certificate chain, PEM; one of a local authority where it is left out.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub tls_key: Option<PathBuf>,
    /// Whose connections begin with a PROXY header: `{ from = ["10.0.0.0/8"], required = true }`. Nobody's, by default.
    pub proxy_protocol: Option<RawProxyProtocol>,
    /// Networks of proxies whose X-Forwarded-* and Forwarded are taken. None, by default.
    pub trusted_proxies: Vec<String>,
    /// Where the line of each request goes: `"off"`, `"stderr"` or `{ file = "PATH" }`.
    pub access_log: Target,
    /// What it looks like.
    pub access_log_format: Format,
    /// `"directory"` or `"s3"`.
    pub storage: Storage,
    /// What the disk cache in front of S3 is brought down to, every few seconds. Default 10 GiB.
    pub cache_max_bytes: u64,
    /// `[fileserver.s3]`: the bucket.
    pub s3: RawS3,
    /// `[fileserver.limits]`: towards clients.
    pub limits: RawLimits,
    /// `[fileserver.upstream]`: towards live nodes.
    pub upstream: upstream::RawSettings,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            http: loopback(8081),
            https: loopback(8444),
            address: Ipv4Addr::LOCALHOST.into(),
            children: None,
            tls_certificate: None,
            tls_key: None,
            proxy_protocol: None,
            trusted_proxies: Vec::new(),
            access_log: Target::Off,
            access_log_format: Format::Json,
            storage: Storage::Directory,
            cache_max_bytes: 10 << 30,
            s3: RawS3::default(),
            limits: RawLimits::default(),
            upstream: upstream::RawSettings::default(),
        }
    }
}

/// What a fileserver goes by. It holds a secret and is not to be printed.
#[derive(Clone, Serialize, Deserialize)]
pub struct Config {
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) https: Vec<SocketAddr>,
    pub(crate) address: IpAddr,
    pub(crate) children: u32,
    pub(crate) certificate: Certificate,
    /// Checked already, as the next one; each child resolves them again.
    pub(crate) proxy_protocol: Option<RawProxyProtocol>,
    pub(crate) trusted_proxies: Vec<String>,
    pub(crate) access_log: Target,
    pub(crate) access_log_format: Format,
    pub(crate) storage: Storage,
    pub(crate) cache_max_bytes: u64,
    /// Checked already, as the next two; each child resolves them again.
    pub(crate) s3: RawS3,
    pub(crate) limits: RawLimits,
    pub(crate) upstream: upstream::RawSettings,
}

impl Raw {
    /// Checks the section; what is wrong goes to `problems`. Blocking: a configured certificate is read.
    pub fn resolve(self, problems: &mut Problems) -> Config {
        let children = children(self.children, "fileserver.children", problems);
        if self.cache_max_bytes == 0 {
            problems.add("fileserver.cache_max_bytes", "must be more than 0");
        }
        let certificate = Certificate::resolve(self.tls_certificate, self.tls_key, "fileserver", problems);
        Fronts::resolve(self.proxy_protocol.as_ref(), &self.trusted_proxies, "fileserver", problems);
        if self.storage == Storage::S3 {
            self.s3.resolve(problems);
        }
        self.limits.resolve("fileserver.limits", problems);
        self.upstream.resolve("fileserver.upstream", problems);
        Config {
            http: self.http,
            https: self.https,
            address: self.address,
            children,
            certificate,
            proxy_protocol: self.proxy_protocol,
            trusted_proxies: self.trusted_proxies,
            access_log: self.access_log,
            access_log_format: self.access_log_format,
            storage: self.storage,
            cache_max_bytes: self.cache_max_bytes,
            s3: self.s3,
            limits: self.limits,
            upstream: self.upstream,
        }
    }
}

impl Config {
    /// Who in front of the public ports is believed.
    pub(crate) fn fronts(&self, problems: &mut Problems) -> Fronts {
        Fronts::resolve(self.proxy_protocol.as_ref(), &self.trusted_proxies, "fileserver", problems)
    }

    /// Child processes.
    pub fn children(&self) -> u32 {
        self.children
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(raw: Raw) -> Result<Config, String> {
        let mut problems = Problems::default();
        let config = raw.resolve(&mut problems);
        problems.finish().map(|()| config).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_good_and_survive_the_way_to_the_child() {
        let config = resolve(Raw::default()).unwrap();
        let told: Config = serde_json::from_value(serde_json::json!(config)).unwrap();
        assert_eq!((told.http, told.storage), (config.http, Storage::Directory));
    }

    #[test]
    fn row_bad_configuration_all_mistakes_are_told_together() {
        let told = resolve(Raw {
            children: Some(0),
            cache_max_bytes: 0,
            tls_key: Some("key.pem".into()),
            proxy_protocol: Some(RawProxyProtocol { from: vec!["all".into()], required: true }),
            trusted_proxies: vec!["10.0.0.0/40".into()],
            storage: Storage::S3,
            s3: RawS3 {
                access_key: "only".into(),
                endpoint: "no url".into(),
                max_attempts: 0,
                ..RawS3::default()
            },
            ..Raw::default()
        });
        let told = told.err().unwrap();
        for key in [
            "children",
            "cache_max_bytes",
            "tls_key",
            "proxy_protocol.from.0",
            "trusted_proxies.0",
            "s3.bucket",
            "s3.access_key",
            "s3.endpoint",
            "s3.max_attempts",
        ] {
            assert!(told.contains(&format!("fileserver.{key}: ")), "{key}: {told}");
        }
    }

    #[test]
    fn an_unused_bucket_is_not_asked_for() {
        assert!(resolve(Raw { storage: Storage::Directory, ..Raw::default() }).is_ok());
    }
}
