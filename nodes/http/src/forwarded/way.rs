//! What a request's head says of its way so far: the addresses in X-Forwarded-For, or in Forwarded (RFC 7239).

use std::net::{IpAddr, SocketAddr};

use crate::head::{Fields, Known};
use crate::http1::TOKEN;
use protoplex_runtime::network::Networks;

/// The address of the client, which `proxies` have brought here: the last one that is none of them. What is no address
/// ends what can be believed; `None` where nothing can.
pub(crate) fn client(fields: &Fields, proxies: &Networks) -> Option<IpAddr> {
    let hops = hops(fields);
    believed(&hops).rfind(|ip| !proxies.contain(*ip)).or_else(|| believed(&hops).next())
}

/// The addresses behind the last thing that is none, the client's first.
pub(super) fn believed(hops: &[Option<IpAddr>]) -> impl DoubleEndedIterator<Item = IpAddr> {
    let from = hops.iter().rposition(Option::is_none).map_or(0, |last| last + 1);
    hops[from..].iter().flatten().copied()
}

/// All that is said of the way, the client first; `None` for what is no address. X-Forwarded-For is asked first: many
/// proxies that write it pass on whatever `Forwarded` a client has sent.
pub(super) fn hops(fields: &Fields) -> Vec<Option<IpAddr>> {
    let list = fields.known(Known::XForwardedFor).flat_map(|list| list.split(|byte| *byte == b','));
    let mut hops: Vec<_> = list.map(|item| node(item.trim_ascii())).collect();
    if hops.is_empty() {
        for field in fields.known(Known::Forwarded) {
            hops.extend(elements(field).unwrap_or_else(|| vec![None]));
        }
    }
    hops
}

/// An address, perhaps with a port, which is passed over: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    ip.ok().map(|ip: IpAddr| ip.to_canonical())
}

/// The `for` of each element of a `Forwarded`; nothing where it is no list of elements (RFC 7239 section 4): then another
/// one behind it could become a part of its last string.
pub(super) fn elements(field: &[u8]) -> Option<Vec<Option<IpAddr>>> {
    let mut elements = Vec::new();
    let (mut rest, mut hop) = (field, None);
    loop {
        let (name, behind) = rest.trim_ascii_start().split_at(TOKEN.run(rest.trim_ascii_start()));
        let (value, behind) = value(behind.strip_prefix(b"=")?)?;
        if name.is_empty() {
            return None;
        }
        if name.eq_ignore_ascii_case(b"for") {
            hop = node(value);
        }
        match behind.trim_ascii_start() {
            [b';', pairs @ ..] => rest = pairs,
            [b',', others @ ..] => {
                elements.push(hop.take());
                rest = others;
            }
            [] => {
                elements.push(hop);
                return Some(elements);
            }
            _ => return None,
        }
    }
}

/// A token, or what stands in quotes, and what follows it. What is escaped in quotes is no part of an address.
fn value(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let (token, rest) = text.split_at(TOKEN.run(text));
        return (!token.is_empty()).then_some((token, rest));
    };
    let mut escaped = false;
    let end = quoted.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })?;
    Some((&quoted[..end], &quoted[end + 1..]))
}

#[cfg(test)]
mod tests {
    //! Which addresses are believed.

    use protoplex_runtime::config::Problems;

    use super::*;

    fn fields(fields: &[(&str, &str)]) -> Fields {
        let mut all = Fields::new();
        for (name, value) in fields {
            all.push(name.as_bytes(), value.as_bytes());
        }
        all
    }

    fn told(said: &[(&str, &str)]) -> Option<String> {
        let list = ["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()];
        let proxies = Networks::resolve(&list, "proxy.trusted_proxies", &mut Problems::default());
        client(&fields(said), &proxies).map(|ip| ip.to_string())
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxy_of_ours() {
        for (list, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("203.0.113.9, 192.0.2.1, 10.0.0.1", "192.0.2.1"),
            ("192.0.2.1,10.0.0.1 ,\tfd00::1, ::ffff:10.0.0.2", "192.0.2.1"),
            ("10.0.0.1, 10.0.0.2", "10.0.0.1"),
            ("192.0.2.1:4711, [fd00::1]:80", "192.0.2.1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("what, 192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(told(&[("x-forwarded-for", list)]).as_deref(), Some(expected), "{list}");
        }
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn row_what_is_no_address_ends_what_is_believed() {
        for (list, expected) in [
            ("192.0.2.1, unknown", None),
            ("192.0.2.1, ", None),
            ("", None),
            ("192.0.2.1 10.0.0.1", None),
            ("192.0.2.1:port", None),
            ("192.0.2.300", None),
            ("192.0.2.1, unknown, 10.0.0.1", Some("10.0.0.1")),
            ("192.0.2.1,, 10.0.0.1, 10.0.0.2", Some("10.0.0.1")),
            ("192.0.2.1, \u{e4}, 10.0.0.2", Some("10.0.0.2")),
        ] {
            assert_eq!(told(&[("x-forwarded-for", list)]).as_deref(), expected, "{list}");
        }
    }

    #[test]
    fn several_fields_are_one_list() {
        let both = [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", "10.0.0.1")];
        assert_eq!(told(&both).as_deref(), Some("192.0.2.1"));
        let both = [("forwarded", "for=192.0.2.1"), ("forwarded", "for=10.0.0.1")];
        assert_eq!(told(&both).as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn forwarded_is_read_where_nothing_else_tells() {
        for (list, expected) in [
            ("for=192.0.2.1", Some("192.0.2.1")),
            ("For=\"[2001:db8::1]:4711\";proto=https, for=10.0.0.1;by=10.0.0.2", Some("2001:db8::1")),
            (
                "proto=http;for=\"192.0.2.1:80\" , by=_x;for=10.0.0.1;host=\"a,for=1.1.1.1\"",
                Some("192.0.2.1"),
            ),
            ("for=192.0.2.1;host=\"a\\\", for=1.1.1.1\"", Some("192.0.2.1")),
            ("for=192.0.2.1, for=unknown", None),
            ("for=192.0.2.1, for=_hidden, for=10.0.0.1", Some("10.0.0.1")),
            ("for=192.0.2.1, proto=http", None),
            ("for=192.0.2.1, for=\"", None),
            ("for=192.0.2.1,", None),
            ("for=192.0.2.1;", None),
            ("for=192.0.2.1 x", None),
            ("for=", None),
            ("=192.0.2.1", None),
            ("", None),
        ] {
            assert_eq!(told(&[("forwarded", list)]).as_deref(), expected, "{list}");
        }
        let both = [("forwarded", "for=192.0.2.9"), ("x-forwarded-for", "192.0.2.1")];
        assert_eq!(told(&both).as_deref(), Some("192.0.2.1"));
    }
}
