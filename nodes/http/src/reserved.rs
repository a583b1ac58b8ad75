//! The fields that tell servers of a request's way: ours to write, so what a stranger sends of them is dropped.

const PREFIXES: [&[u8]; 2] = [b"protoplex-", b"x-forwarded-"];
const NAMES: [&[u8]; 2] = [b"forwarded", b"x-real-ip"];
/// Fields that we write, or go by, under this spelling alone.
const SPELT_WITH_DASHES: [&[u8]; 3] = [b"content-length", b"transfer-encoding", b"x-request-id"];

/// Whether a field tells of a request's way: `Protoplex-*`, `X-Forwarded-*`, `Forwarded`, `X-Real-IP`, in any
/// case. An underscore is a dash here, because CGI and WSGI make one variable of both (RFC 3875 section 4.1.18).
pub(crate) fn tells_the_way(name: &[u8]) -> bool {
    PREFIXES.iter().any(|prefix| name.get(..prefix.len()).is_some_and(|start| is_same(start, prefix)))
        || NAMES.iter().any(|other| is_same(name, other))
}

/// Whether a field is another spelling of what we have said or checked, so that a stranger's must go.
pub(crate) fn is_respelt(name: &[u8]) -> bool {
    name.contains(&b'_') && SPELT_WITH_DASHES.iter().any(|other| is_same(name, other))
}

fn is_same(name: &[u8], other: &[u8]) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == other.len() && name.iter().zip(other).all(|(byte, other)| fold(*byte) == *other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_known_and_nothing_else() {
        for name in [
            "protoplex-key",
            "PROTOPLEX_EPOCH",
            "Protoplex-Anything",
            "x-forwarded-for",
            "X_Forwarded-Port",
            "forwarded",
            "Forwarded",
            "x-real_ip",
        ] {
            assert!(tells_the_way(name.as_bytes()), "{name}");
        }
        for name in ["", "protoplex", "x-forwarded", "x-forwarde_", "forwarded-by", "x-real-ips", "real-ip"] {
            assert!(!tells_the_way(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn other_spellings_of_what_we_write_are_known() {
        for name in ["content_length", "transfer_encoding", "x_request-id", "X-Request_Id"] {
            assert!(is_respelt(name.as_bytes()), "{name}");
        }
        for name in ["host", "x-request-id", "content-length", "x_own", "te", "_"] {
            assert!(!is_respelt(name.as_bytes()), "{name}");
        }
    }
}
