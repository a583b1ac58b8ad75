//! The balancers and proxies in front of a port, as far as they are believed when they tell of clients.

use std::net::IpAddr;
use std::rc::Rc;

use protoplex_runtime::config::Problems;
use serde::{Deserialize, Serialize};

use protoplex_runtime::network::Networks;

/// `proxy_protocol` of a section of the configuration: `{ from = ["10.0.0.0/8"], required = true }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawProxyProtocol {
    /// Networks of balancers, whose connections may begin with a PROXY header, version 1 or 2.
    pub from: Vec<String>,
    /// Whether they must. Default false.
    #[serde(default)]
    pub required: bool,
}

/// Who in front of a port is believed. Nobody, by default. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Fronts {
    proxy_protocol: Option<Rc<ProxyProtocol>>,
    trusted: Option<Rc<Networks>>,
}

/// Who announces clients.
#[derive(Debug)]
struct ProxyProtocol {
    from: Networks,
    required: bool,
}

/// Whether a connection begins with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announces {
    /// What looks like one is none.
    Never,
    Perhaps,
    Always,
}

impl Fronts {
    /// Checks `proxy_protocol` and `trusted_proxies` of a section of the configuration; what is wrong goes to `problems`.
    pub fn resolve(
        proxy_protocol: Option<&RawProxyProtocol>,
        trusted_proxies: &[String],
        section: &str,
        problems: &mut Problems,
    ) -> Self {
        let proxy_protocol = proxy_protocol.map(|raw| {
            let key = format!("{section}.proxy_protocol.from");
            if raw.from.is_empty() {
                problems
                    .add(&key, "names no network; leave proxy_protocol out where nobody sends PROXY headers");
            }
            let from = Networks::resolve(&raw.from, &key, problems);
            Rc::new(ProxyProtocol { from, required: raw.required })
        });
        let trusted = Networks::resolve(trusted_proxies, &format!("{section}.trusted_proxies"), problems);
        let trusted = (!trusted.is_empty()).then(|| Rc::new(trusted));
        Self { proxy_protocol, trusted }
    }

    /// The same for a port at which no balancer sends PROXY headers.
    #[must_use]
    pub fn without_proxy_protocol(&self) -> Self {
        Self { proxy_protocol: None, trusted: self.trusted.clone() }
    }

    /// Whether connections from this address begin with a PROXY header.
    pub(crate) fn announces(&self, ip: IpAddr) -> Announces {
        match &self.proxy_protocol {
            Some(proxy_protocol) if proxy_protocol.from.contain(ip) => match proxy_protocol.required {
                true => Announces::Always,
                false => Announces::Perhaps,
            },
            _ => Announces::Never,
        }
    }

    /// The proxies that are trusted, where this address is one of them.
    pub(crate) fn trusting(&self, ip: IpAddr) -> Option<Rc<Networks>> {
        self.trusted.as_ref().filter(|trusted| trusted.contain(ip)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(proxy_protocol: &str, trusted: &[&str]) -> Result<Fronts, String> {
        let raw: RawProxyProtocol =
            serde_json::from_str(proxy_protocol).map_err(|error| error.to_string())?;
        let trusted: Vec<String> = trusted.iter().copied().map(Into::into).collect();
        let mut problems = Problems::default();
        let fronts = Fronts::resolve(Some(&raw), &trusted, "proxy", &mut problems);
        problems.finish().map(|()| fronts).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_networks_that_are_named_are_believed() {
        let fronts = resolve(r#"{"from": ["10.0.0.0/8"], "required": true}"#, &["192.0.2.0/24"]).unwrap();
        let (balancer, proxy) = ("::ffff:10.1.1.1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        assert_eq!(
            (fronts.announces(balancer), fronts.announces(proxy)),
            (Announces::Always, Announces::Never)
        );
        assert!(fronts.trusting(proxy).is_some() && fronts.trusting(balancer).is_none());
        let own = fronts.without_proxy_protocol();
        assert!(own.announces(balancer) == Announces::Never && own.trusting(proxy).is_some());
        let fronts = resolve(r#"{"from": ["10.0.0.0/8"]}"#, &[]).unwrap();
        assert!(fronts.announces(balancer) == Announces::Perhaps && fronts.trusting(proxy).is_none());
        assert_eq!(Fronts::default().announces(balancer), Announces::Never);
    }

    #[test]
    fn row_all_that_is_wrong_is_told_with_its_key() {
        let told = resolve(r#"{"from": ["all"]}"#, &["10.0.0.0/8", "10.0.0.0/99"]).unwrap_err();
        for key in ["proxy.proxy_protocol.from.0: ", "proxy.trusted_proxies.1: "] {
            assert!(told.contains(key), "{key} in {told}");
        }
        assert!(
            resolve(r#"{"from": []}"#, &[])
                .unwrap_err()
                .contains("proxy.proxy_protocol.from: names no network")
        );
        assert!(resolve(r#"{"from": [], "form": 1}"#, &[]).unwrap_err().contains("unknown field"));
        assert!(resolve("{}", &[]).unwrap_err().contains("missing field"));
    }
}
