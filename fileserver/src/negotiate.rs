//! Which content coding a client gets (RFC 9110 section 12.5.3).

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};

/// How a body travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// As it is.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
}

impl Coding {
    /// What `Content-Encoding` says; nothing for identity.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Brotli => Some("br"),
        }
    }
}

/// The coding that the client likes best among identity and those that are there, the first of them where it likes
/// several equally. A client that refuses all of them gets identity.
pub(crate) fn choose(headers: &HeaderMap, present: &[Coding]) -> Coding {
    let fields = headers.get_all(ACCEPT_ENCODING).iter();
    choose_among(fields.map(HeaderValue::as_bytes), present)
}

/// The same by the values of all `Accept-Encoding`.
pub(crate) fn choose_among<'a>(fields: impl Iterator<Item = &'a [u8]>, present: &[Coding]) -> Coding {
    let accepted = Accepted::read(fields);
    let mut best = (Coding::Identity, accepted.identity);
    for &coding in present {
        let weight = accepted.of(coding);
        let better = if best.0 == Coding::Identity {
            weight >= best.1.unwrap_or(1)
        } else {
            weight > best.1.unwrap_or(0)
        };
        if weight > 0 && better {
            best = (coding, Some(weight));
        }
    }
    best.0
}

/// Weights in thousandths. A coding that is not named has none; identity then counts as just accepted.
#[derive(Debug, Default)]
struct Accepted {
    identity: Option<u16>,
    gzip: Option<u16>,
    brotli: Option<u16>,
    rest: u16,
}

impl Accepted {
    fn read<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut accepted = Self::default();
        let fields = fields.filter_map(|field| str::from_utf8(field).ok());
        for item in fields.flat_map(|field| field.split(',')) {
            let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
            let weight = weight(parameters);
            let is = |other: &str| name.trim().eq_ignore_ascii_case(other);
            if is("identity") {
                accepted.identity = Some(weight);
            } else if is("gzip") || is("x-gzip") {
                accepted.gzip = Some(weight);
            } else if is("br") {
                accepted.brotli = Some(weight);
            } else if is("*") {
                accepted.rest = weight;
            }
        }
        accepted
    }

    fn of(&self, coding: Coding) -> u16 {
        match coding {
            Coding::Identity => self.identity,
            Coding::Gzip => self.gzip,
            Coding::Brotli => self.brotli,
        }
        .unwrap_or(self.rest)
    }
}

/// `q=0.5` in thousandths; 1,000 where there is none, 0 where it is malformed.
fn weight(parameters: &str) -> u16 {
    let Some((name, value)) = parameters.split_once('=') else { return 1_000 };
    match value.trim().parse::<f32>() {
        Ok(weight) if name.trim().eq_ignore_ascii_case("q") && (0.0..=1.0).contains(&weight) => {
            (weight * 1_000.0) as u16
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn codings_by_the_clients_wish() {
        use Coding::{Brotli, Gzip, Identity};
        let both = [Brotli, Gzip];
        let table: [(&str, &[Coding], Coding); 14] = [
            ("", &both, Identity),
            ("gzip", &both, Gzip),
            ("gzip, deflate, br, zstd", &both, Brotli),
            ("gzip, br", &[Gzip], Gzip),
            ("gzip;q=1.0, br;q=0.5", &both, Gzip),
            ("GZIP", &[Gzip], Gzip),
            ("*", &both, Brotli),
            ("*;q=0", &both, Identity),
            ("br;q=0, *", &both, Gzip),
            ("gzip;q=0", &both, Identity),
            ("gzip;q=0.5, identity", &[Gzip], Identity),
            ("gzip;q=0.5, identity;q=0.5", &[Gzip], Gzip),
            ("identity;q=0, gzip;q=0.1", &[Gzip], Gzip),
            ("gzip;q=2, br;q=x", &both, Identity),
        ];
        for (field, present, coding) in table {
            let headers = [(ACCEPT_ENCODING, HeaderValue::from_static(field))].into_iter().collect();
            assert_eq!(choose(&headers, present), coding, "{field}");
        }
        assert_eq!(choose(&HeaderMap::new(), &both), Identity);
    }
}
