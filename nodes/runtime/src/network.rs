//! Networks of addresses, as a configuration names those whose word is taken.

use std::net::IpAddr;
use std::str::FromStr;

use crate::config::Problems;
use thiserror::Error;

/// All addresses that begin with the same bits: `10.0.0.0/8`, `fd00::/8`, or one address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The first of them.
    first: IpAddr,
    bits: u32,
}

/// Several of them.
#[derive(Clone, Debug, Default)]
pub struct Networks(Vec<Network>);

/// Why a text names no network. The operator's.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NetworkError {
    /// It has not the form of one.
    #[error("{0:?} is no network: write 10.0.0.0/8, fd00::/8 or an address")]
    Form(String),
    /// The bits behind those that count are not all zero.
    #[error("{text:?} is no network: {bits} bits would begin with {first}")]
    Host {
        /// As written.
        text: String,
        /// Those that count.
        bits: u32,
        /// The network that they name.
        first: IpAddr,
    },
}

impl Networks {
    /// Checks a list, which stands at `key` of the configuration; what is wrong goes to `problems`.
    pub fn resolve(list: &[String], key: &str, problems: &mut Problems) -> Self {
        let network = |(index, text): (usize, &String)| {
            problems.check(&format!("{key}.{index}"), text.parse::<Network>())
        };
        Self(list.iter().enumerate().filter_map(network).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them has this address. One of IPv4 that came over IPv6 is one of IPv4.
    pub fn contain(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|network| first(ip, network.bits) == Some(network.first))
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let malformed = || NetworkError::Form(text.to_owned());
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| malformed())?;
        let bits = match bits {
            None => width(ip),
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().map_err(|_| malformed())?
            }
            Some(_) => return Err(malformed()),
        };
        let first = first(ip, bits).ok_or_else(malformed)?;
        if first != ip {
            return Err(NetworkError::Host { text: text.to_owned(), bits, first });
        }
        // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
        match ip.to_canonical() {
            IpAddr::V4(first) if ip.is_ipv6() && bits >= 96 => {
                Ok(Self { first: first.into(), bits: bits - 96 })
            }
            _ => Ok(Self { first, bits }),
        }
    }
}

fn width(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The first address that begins with the same `bits` bits; `None` where an address of this kind has fewer.
fn first(ip: IpAddr, bits: u32) -> Option<IpAddr> {
    let rest = width(ip).checked_sub(bits)?;
    Some(match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
            std::net::Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(list: &[&str]) -> Networks {
        let list: Vec<String> = list.iter().copied().map(Into::into).collect();
        let mut problems = Problems::default();
        let networks = Networks::resolve(&list, "proxy.trusted_proxies", &mut problems);
        problems.finish().unwrap();
        networks
    }

    #[test]
    fn an_address_is_in_a_network_by_its_first_bits() {
        for (network, inside, outside) in [
            (
                "10.0.0.0/8",
                &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"][..],
                &["11.0.0.0", "::10.0.0.1"][..],
            ),
            ("192.0.2.7", &["192.0.2.7"], &["192.0.2.6", "192.0.2.8"]),
            ("192.0.2.4/31", &["192.0.2.4", "192.0.2.5"], &["192.0.2.3", "192.0.2.6"]),
            ("0.0.0.0/0", &["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"], &["::", "::1"]),
            ("::/0", &["::", "2001:db8::1"], &["1.2.3.4"]),
            ("fd00::/8", &["fd00::1", "fdff::"], &["fe00::", "fc00::", "253.0.0.1"]),
            ("2001:db8::/127", &["2001:db8::", "2001:db8::1"], &["2001:db8::2"]),
            ("::ffff:10.0.0.0/104", &["10.9.9.9", "::ffff:10.9.9.9"], &["11.0.0.0"]),
        ] {
            let networks = networks(&["203.0.113.0/24", network]);
            for ip in inside {
                assert!(networks.contain(ip.parse().unwrap()), "{ip} in {network}");
            }
            for ip in outside {
                assert!(!networks.contain(ip.parse().unwrap()), "{ip} not in {network}");
            }
        }
        assert!(!networks(&[]).contain("0.0.0.0".parse().unwrap()));
    }

    #[test]
    fn row_a_network_that_is_none_is_named_by_its_place() {
        let list =
            ["10.0.0.0/33", "10.0.0.0/8", "10.0.0.1/8", "", "10/8", "::/129", "::1/+5", "a/8", "1.2.3.4/"];
        let list = list.map(String::from);
        let mut problems = Problems::default();
        Networks::resolve(&list, "proxy.trusted_proxies", &mut problems);
        let told = problems.finish().unwrap_err().to_string();
        assert_eq!(told.lines().count(), 8, "{told}");
        assert!(
            told.contains("proxy.trusted_proxies.0: \"10.0.0.0/33\" is no network: write 10.0.0.0/8"),
            "{told}"
        );
        assert!(!told.contains("proxy.trusted_proxies.1: "), "{told}");
        assert!(
            told.contains(
                "proxy.trusted_proxies.2: \"10.0.0.1/8\" is no network: 8 bits would begin with 10.0.0.0"
            ),
            "{told}"
        );
    }
}
