//! What is a header, what is none, and that it doesn't matter how the bytes are cut.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A header of version 2 with these bytes behind its length.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    [V2, &[command, family], &(block.len() as u16).to_be_bytes(), block].concat()
}

/// The block of 192.0.2.7:4000 to 198.51.100.1:443.
const BLOCK: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0x0f, 0xa0, 0x01, 0xbb];

fn block6() -> Vec<u8> {
    let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    [&ip("2001:db8::7")[..], &ip("2001:db8::1"), &[0x0f, 0xa0, 0x01, 0xbb]].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
}

/// A header with a checksum, and another value before and behind it.
fn with_checksum() -> Vec<u8> {
    let block = [BLOCK, &tlv(0x04, &[0; 5]), &tlv(CRC32C, &[0; 4]), &tlv(0xEA, b"vpce-1")].concat();
    let mut header = v2(0x21, 0x11, &block);
    let crc = crc32c(header.iter().copied());
    let at = V2_HEAD_BYTES + BLOCK.len() + 8 + TLV_HEAD_BYTES;
    header[at..at + 4].copy_from_slice(&crc.to_be_bytes());
    header
}

/// Headers with the address that they tell.
fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
    let v4 = Some("192.0.2.7:4000");
    let v6 = Some("[2001:db8::7]:4000");
    vec![
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n".to_vec(), v4),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4000 443\r\n".to_vec(), v6),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 0 65535\r\n".to_vec(), Some("[::ffff:192.0.2.7]:0")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        ([&b"PROXY UNKNOWN "[..], &[b'f'; 91], b"\r\n"].concat(), None),
        (v2(0x21, 0x11, BLOCK), v4),
        (v2(0x21, 0x21, &block6()), v6),
        (v2(0x21, 0x11, &[BLOCK, &tlv(0x01, b"h2"), &tlv(0x05, &[])].concat()), v4),
        (v2(0x21, 0x11, &[BLOCK, &tlv(0x20, &[7; 4096 - 16 - 12 - 3])].concat()), v4),
        (with_checksum(), v4),
        (v2(0x20, 0x00, &[]), None),
        (v2(0x20, 0x11, BLOCK), None),
        // Whatever stands there.
        (v2(0x20, 0xFF, &[1, 2]), None),
        (v2(0x21, 0x00, &[CRC32C, 0, 9]), None),
        (v2(0x21, 0x12, BLOCK), None),
        (v2(0x21, 0x31, &[0; 216]), None),
    ]
}

/// Headers that break a rule.
fn refused() -> Vec<(Vec<u8>, Refusal)> {
    let mut wrong = with_checksum();
    wrong[V2_HEAD_BYTES] ^= 1;
    let line = |rest: &str| (format!("PROXY {rest}\r\n").into_bytes(), Refusal::Malformed);
    let binary = |command, family, block: &[u8]| (v2(command, family, block), Refusal::Malformed);
    let behind = |tlv: &[u8]| binary(0x21, 0x11, &[BLOCK, tlv].concat());
    vec![
        line(""),
        line("TCP4"),
        line("TCP5 192.0.2.7 198.51.100.1 4000 443"),
        line("tcp4 192.0.2.7 198.51.100.1 4000 443"),
        line("TCP4 192.0.2.7 198.51.100.1 4000"),
        line("TCP4 192.0.2.7 198.51.100.1 4000 443 "),
        line("TCP4 192.0.2.7  198.51.100.1 4000 443"),
        line("TCP4 192.0.2.7 198.51.100.1 4000 443\r"),
        line("TCP4 192.0.2.7 198.51.100.1 4000 443\nx"),
        line("TCP4 192.0.2.256 198.51.100.1 4000 443"),
        line("TCP4 192.0.2.07 198.51.100.1 4000 443"),
        line("TCP4 2001:db8::7 198.51.100.1 4000 443"),
        line("TCP6 192.0.2.7 198.51.100.1 4000 443"),
        line("TCP4 192.0.2.7 198.51.100.1 +4000 443"),
        line("TCP4 192.0.2.7 198.51.100.1 4000 0443"),
        line("TCP4 192.0.2.7 198.51.100.1 65536 443"),
        line("TCP4 192.0.2.7 198.51.100.1  443"),
        (b"PROXY TCP4 \xff\r\n".to_vec(), Refusal::Malformed),
        ([&b"PROXY UNKNOWN "[..], &[b'f'; 92], b"\r\n"].concat(), Refusal::TooLong),
        ([&b"PROXY TCP4 "[..], &[b'1'; 96]].concat(), Refusal::TooLong),
        binary(0x11, 0x11, BLOCK),
        binary(0x22, 0x11, BLOCK),
        binary(0x21, 0x13, BLOCK),
        binary(0x21, 0x41, BLOCK),
        binary(0x21, 0x11, &BLOCK[..11]),
        binary(0x21, 0x21, &block6()[..35]),
        binary(0x21, 0x31, &[0; 215]),
        behind(&[1]),
        behind(&[1, 0]),
        behind(&[1, 0, 1]),
        behind(&tlv(CRC32C, &[0; 3])),
        behind(&tlv(CRC32C, &[])),
        (wrong, Refusal::BadChecksum),
        (v2(0x21, 0x11, &[0; 4096 - 16 + 1]), Refusal::TooLong),
        (v2(0x20, 0x00, &[0; 65_535]), Refusal::TooLong),
    ]
}

/// The verdict on each part from the start on, up to `last`: none before it may be another final one.
fn assert_whatever_the_cut(bytes: &[u8], last: Verdict) {
    let mut decided = None;
    for end in 0..=bytes.len() {
        let verdict = judge(&bytes[..end]);
        match decided {
            Some(before) => assert_eq!(verdict, before, "{end} of {}", bytes.escape_ascii()),
            None if !matches!(verdict, Verdict::Undecided | Verdict::Partial) => decided = Some(verdict),
            None => {}
        }
    }
    assert_eq!(decided, Some(last), "{}", bytes.escape_ascii());
}

#[test]
fn a_header_tells_its_address_however_it_is_cut() {
    for (header, client) in headers() {
        let client = client.map(|client| client.parse().unwrap());
        let whole = Verdict::Whole { length: header.len(), client };
        for end in 1..header.len() {
            assert!(matches!(judge(&header[..end]), Verdict::Undecided | Verdict::Partial), "{end}");
        }
        for behind in [&b""[..], b"GET / HTTP/1.1\r\n", b"\r\n", b"PROXY UNKNOWN\r\n", b"\x16\x03\x01"] {
            assert_whatever_the_cut(&[&header, behind].concat(), whole);
        }
    }
}

#[test]
fn row_a_header_that_breaks_a_rule_is_refused_however_it_is_cut() {
    for (header, refusal) in refused() {
        for behind in [&b""[..], b"GET / HTTP/1.1\r\n\r\n"] {
            assert_whatever_the_cut(&[&header, behind].concat(), Verdict::Refused(refusal));
        }
    }
}

#[test]
fn what_begins_otherwise_is_no_header() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PRI * HTTP/2.0\r\n",
        b"POST / HTTP/1.1\r\n",
        b"PROXYX",
        b"proxy TCP4",
        b"\r\nGET / HTTP/1.1\r\n",
        b"\r\n\r\n\0\r\nQUIX\n",
        b"\x16\x03\x01\x02\x00",
        b"\0",
    ] {
        assert_whatever_the_cut(bytes, Verdict::Absent);
    }
    for (bytes, verdict) in [
        (&b""[..], Verdict::Undecided),
        (b"PROXY", Verdict::Undecided),
        (b"PROXY ", Verdict::Partial),
        (&V2[..11], Verdict::Undecided),
        (V2, Verdict::Partial),
    ] {
        assert_eq!(judge(bytes), verdict, "{}", bytes.escape_ascii());
    }
}

#[test]
fn the_checksum_is_the_one_of_the_standard() {
    // RFC 3720 appendix B.4.
    assert_eq!(crc32c([0; 32].into_iter()), 0x8A91_36AA);
    assert_eq!(crc32c([0xFF; 32].into_iter()), 0x62A8_AB43);
    assert_eq!(crc32c(0..32), 0x46DD_794E);
}

#[test]
fn the_numbers_of_refusals_are_their_places() {
    assert!(Refusal::ALL.iter().enumerate().all(|(number, refusal)| *refusal as usize == number));
}

proptest! {
    #[test]
    fn no_bytes_are_judged_differently_for_being_cut(
        begin in prop_oneof![
            Just(Vec::new()), Just(V1.to_vec()), Just(b"PROXY TCP4 1.2.3.4 ".to_vec()), Just(V2.to_vec()),
            Just(v2(0x21, 0x11, BLOCK)), Just(with_checksum()),
        ],
        flip in any::<(prop::sample::Index, u8)>(),
        end in vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = [begin, end].concat();
        if !bytes.is_empty() {
            let at = flip.0.index(bytes.len());
            bytes[at] ^= flip.1;
        }
        let last = judge(&bytes);
        for cut in 0..bytes.len() {
            let verdict = judge(&bytes[..cut]);
            prop_assert!(verdict == last || matches!(verdict, Verdict::Undecided | Verdict::Partial));
        }
    }

    #[test]
    fn every_address_is_read_as_it_was_written(source: SocketAddr, destination: SocketAddr) {
        let (source, destination) = match (source, destination) {
            (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
                // The header has no room for flow and scope.
                let plain = |address: std::net::SocketAddrV6| SocketAddr::from((*address.ip(), address.port()));
                (plain(source), plain(destination))
            }
            (SocketAddr::V4(_), SocketAddr::V4(_)) => (source, destination),
            _ => return Ok(()),
        };
        let (word, family) = if source.is_ipv4() { ("TCP4", 0x11) } else { ("TCP6", 0x21) };
        let line = format!(
            "PROXY {word} {} {} {} {}\r\n", source.ip(), destination.ip(), source.port(), destination.port());
        prop_assert_eq!(judge(line.as_bytes()), Verdict::Whole { length: line.len(), client: Some(source) });
        let octets = |address: SocketAddr| match address {
            SocketAddr::V4(address) => address.ip().octets().to_vec(),
            SocketAddr::V6(address) => address.ip().octets().to_vec(),
        };
        let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        let header = v2(0x21, family, &[octets(source), octets(destination), ports].concat());
        prop_assert_eq!(judge(&header), Verdict::Whole { length: header.len(), client: Some(source) });
    }
}
