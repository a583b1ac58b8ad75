//! The section `[proxy]` of the configuration: as written ([`Raw`]), and checked ([`Config`]).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use protoplex_http::access_log::{Format, Target};
use protoplex_http::public::Certificate;
use protoplex_http::{Fronts, RawLimits, RawProxyProtocol, upstream};
use protoplex_runtime::config::{Problems, children, loopback};
use serde::{Deserialize, Serialize};

/// `[proxy]`, as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Where HTTP is served.
    pub http: Vec<SocketAddr>,
    /// Where HTTPS is served.
    pub https: Vec<SocketAddr>,
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
    /// How long an upgraded connection (a WebSocket) may be silent on both sides.
    pub tunnel_idle_timeout_ms: u64,
    /// `[proxy.limits]`: towards clients.
    pub limits: RawLimits,
    /// `[proxy.upstream]`: towards members.
    pub upstream: upstream::RawSettings,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            http: loopback(8080),
            https: loopback(8443),
            children: None,
            tls_certificate: None,
            tls_key: None,
            proxy_protocol: None,
            trusted_proxies: Vec::new(),
            access_log: Target::Off,
            access_log_format: Format::Json,
            tunnel_idle_timeout_ms: 3_600_000,
            limits: RawLimits::default(),
            upstream: upstream::RawSettings::default(),
        }
    }
}

/// What a proxy goes by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) https: Vec<SocketAddr>,
    pub(crate) children: u32,
    pub(crate) certificate: Certificate,
    /// Checked already, as the next one; each child resolves them again.
    pub(crate) proxy_protocol: Option<RawProxyProtocol>,
    pub(crate) trusted_proxies: Vec<String>,
    pub(crate) access_log: Target,
    pub(crate) access_log_format: Format,
    pub(crate) tunnel_idle_timeout: Duration,
    /// Checked already, as the next one; each child resolves them again.
    pub(crate) limits: RawLimits,
    pub(crate) upstream: upstream::RawSettings,
}

impl Raw {
    /// Checks the section; what is wrong goes to `problems`. Blocking: a configured certificate is read.
    pub fn resolve(self, problems: &mut Problems) -> Config {
        if self.http.is_empty() && self.https.is_empty() {
            problems.add("proxy.http", "neither http nor https has an address: nothing would be served");
        }
        let children = children(self.children, "proxy.children", problems);
        if self.tunnel_idle_timeout_ms == 0 {
            problems.add("proxy.tunnel_idle_timeout_ms", "must be more than 0");
        }
        let certificate = Certificate::resolve(self.tls_certificate, self.tls_key, "proxy", problems);
        Fronts::resolve(self.proxy_protocol.as_ref(), &self.trusted_proxies, "proxy", problems);
        self.limits.resolve("proxy.limits", problems);
        self.upstream.resolve("proxy.upstream", problems);
        Config {
            http: self.http,
            https: self.https,
            children,
            certificate,
            proxy_protocol: self.proxy_protocol,
            trusted_proxies: self.trusted_proxies,
            access_log: self.access_log,
            access_log_format: self.access_log_format,
            tunnel_idle_timeout: Duration::from_millis(self.tunnel_idle_timeout_ms),
            limits: self.limits,
            upstream: self.upstream,
        }
    }
}

impl Config {
    /// Who in front of the public ports is believed.
    pub(crate) fn fronts(&self, problems: &mut Problems) -> Fronts {
        Fronts::resolve(self.proxy_protocol.as_ref(), &self.trusted_proxies, "proxy", problems)
    }

    /// Child processes.
    pub fn children(&self) -> u32 {
        self.children
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_good_and_survive_the_way_to_the_child() {
        let mut problems = Problems::default();
        let config = Raw::default().resolve(&mut problems);
        problems.finish().unwrap();
        let told: Config = serde_json::from_value(serde_json::json!(config)).unwrap();
        assert_eq!(told.http, config.http);
        assert_eq!(told.tunnel_idle_timeout, Duration::from_secs(3600));
    }

    #[test]
    fn all_mistakes_are_told_together() {
        let raw = Raw {
            http: Vec::new(),
            https: Vec::new(),
            children: Some(0),
            tls_key: Some("key.pem".into()),
            tunnel_idle_timeout_ms: 0,
            proxy_protocol: Some(RawProxyProtocol { from: vec!["all".into()], required: true }),
            trusted_proxies: vec!["10.0.0.0/8".into(), "10.0.0.0/40".into()],
            limits: RawLimits { max_headers: 0, ..RawLimits::default() },
            upstream: upstream::RawSettings { connect_timeout_ms: 0, ..upstream::RawSettings::default() },
            ..Raw::default()
        };
        let mut problems = Problems::default();
        raw.resolve(&mut problems);
        let told = problems.finish().unwrap_err().to_string();
        for key in [
            "http",
            "children",
            "tls_key",
            "tunnel_idle_timeout_ms",
            "proxy_protocol.from.0",
            "trusted_proxies.1",
            "limits.max_headers",
            "upstream.connect_timeout_ms",
        ] {
            assert!(told.contains(&format!("proxy.{key}: ")), "{key} in {told}");
        }
        assert_eq!(told.lines().count(), 8, "{told}");
    }

    #[test]
    fn a_certificate_that_is_not_there_is_refused() {
        let raw = Raw {
            tls_certificate: Some("/nonexistent/cert.pem".into()),
            tls_key: Some("/nonexistent/key.pem".into()),
            ..Raw::default()
        };
        let mut problems = Problems::default();
        raw.resolve(&mut problems);
        assert!(problems.finish().unwrap_err().to_string().contains("/nonexistent/cert.pem"));
    }
}
