//! The header with which a balancer tells whose connection it passes on (HAProxy's proxy-protocol.txt, versions 1 and 2).
//!
//! No I/O and no clock: a verdict depends on the bytes alone, however they were cut.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::{self, FromStr};

use thiserror::Error;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Too few to tell.
    Undecided,
    /// The beginning of a header.
    Partial,
    /// A header of this length. Without an address the connection is the sender's own, or its origin is unknown.
    Whole { length: usize, client: Option<SocketAddr> },
    /// No header.
    Absent,
    /// A header that breaks a rule.
    Refused(Refusal),
}

/// Why a connection that has to tell, or begins to tell, whose it is is closed. The balancer's, or of whoever
/// stands in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error("it has no PROXY header")]
    Missing,
    #[error("its PROXY header is malformed")]
    Malformed,
    #[error("its PROXY header is too long")]
    TooLong,
    #[error("the checksum of its PROXY header is wrong")]
    BadChecksum,
    #[error("it ended within its PROXY header")]
    Truncated,
    #[error("its PROXY header did not arrive in time")]
    TooSlow,
}

impl Refusal {
    /// In the order of their numbers.
    pub(crate) const ALL: [Self; 6] =
        [Self::Missing, Self::Malformed, Self::TooLong, Self::BadChecksum, Self::Truncated, Self::TooSlow];

    /// The reason for programs.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::TooLong => "too-long",
            Self::BadChecksum => "bad-checksum",
            Self::Truncated => "truncated",
            Self::TooSlow => "too-slow",
        }
    }
}

/// How version 1 begins.
const V1: &[u8] = b"PROXY ";
/// The longest header of version 1, its line end included.
const V1_MAX_BYTES: usize = 107;
/// How version 2 begins.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2 up to its length.
const V2_HEAD_BYTES: usize = 16;
/// The longest header of version 2: a balancer may put a client's certificate into it.
const V2_MAX_BYTES: usize = 4096;
/// Type and length of a type-length-value.
const TLV_HEAD_BYTES: usize = 3;
/// The type of a CRC-32C over the whole header.
const CRC32C: u8 = 0x03;

/// Judges the first bytes of a connection. More bytes never change a verdict but [`Verdict::Undecided`] and
/// [`Verdict::Partial`].
pub(crate) fn judge(bytes: &[u8]) -> Verdict {
    let judged = match bytes {
        [] => return Verdict::Undecided,
        [b'P', ..] => signed(bytes, V1).map(|()| v1(bytes)),
        _ => signed(bytes, V2).map(|()| v2(bytes)),
    };
    match judged {
        Err(undecided) => undecided,
        Ok(Ok(verdict)) => verdict,
        Ok(Err(refusal)) => Verdict::Refused(refusal),
    }
}

/// Whether the bytes begin with a signature.
fn signed(bytes: &[u8], signature: &[u8]) -> Result<(), Verdict> {
    match bytes.len() < signature.len() {
        true if signature.starts_with(bytes) => Err(Verdict::Undecided),
        false if bytes.starts_with(signature) => Ok(()),
        _ => Err(Verdict::Absent),
    }
}

/// A line of text: `PROXY TCP4 SOURCE DESTINATION SOURCE-PORT DESTINATION-PORT`, or `PROXY UNKNOWN` and anything.
fn v1(bytes: &[u8]) -> Result<Verdict, Refusal> {
    let within = &bytes[..bytes.len().min(V1_MAX_BYTES)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        return if within.len() < V1_MAX_BYTES { Ok(Verdict::Partial) } else { Err(Refusal::TooLong) };
    };
    let line = str::from_utf8(&bytes[V1.len()..end]).map_err(|_| Refusal::Malformed)?;
    let client = match line.split_once(' ').unwrap_or((line, "")) {
        ("UNKNOWN", _) => None,
        ("TCP4", rest) => Some(v1_source::<Ipv4Addr>(rest).ok_or(Refusal::Malformed)?),
        ("TCP6", rest) => Some(v1_source::<Ipv6Addr>(rest).ok_or(Refusal::Malformed)?),
        _ => return Err(Refusal::Malformed),
    };
    Ok(Verdict::Whole { length: end + 2, client })
}

fn v1_source<A: FromStr>(rest: &str) -> Option<SocketAddr>
where
    SocketAddr: From<(A, u16)>,
{
    let mut words = rest.split(' ');
    let source = words.next()?.parse::<A>().ok()?;
    // The destination is ours, but it must be one.
    words.next()?.parse::<A>().ok()?;
    let source_port = port(words.next()?)?;
    port(words.next()?)?;
    words.next().is_none().then(|| (source, source_port).into())
}

/// Decimal, without leading zeros.
fn port(word: &str) -> Option<u16> {
    let plain = word == "0" || (!word.starts_with('0') && word.bytes().all(|byte| byte.is_ascii_digit()));
    word.parse().ok().filter(|_| plain)
}

/// Binary: signature, version and command, family and transport, length, addresses, type-length-values.
fn v2(bytes: &[u8]) -> Result<Verdict, Refusal> {
    let Some((head, rest)) = bytes.split_at_checked(V2_HEAD_BYTES) else { return Ok(Verdict::Partial) };
    let [command, family, high, low] = head[V2.len()..] else { return Err(Refusal::Malformed) };
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Refusal::Malformed),
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if V2_HEAD_BYTES + length > V2_MAX_BYTES {
        return Err(Refusal::TooLong);
    }
    let Some(block) = rest.get(..length) else { return Ok(Verdict::Partial) };
    let whole = |client| Ok(Verdict::Whole { length: V2_HEAD_BYTES + length, client });
    // What a sender says with a connection of its own, or of an origin that it doesn't know, is passed over.
    let address_bytes = match family {
        _ if is_local => return whole(None),
        0x00 => return whole(None),
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => return Err(Refusal::Malformed),
    };
    let (addresses, tlvs) = block.split_at_checked(address_bytes).ok_or(Refusal::Malformed)?;
    check_tlvs(&bytes[..V2_HEAD_BYTES + length], tlvs.len())?;
    whole(v2_source(family, addresses))
}

/// Of a TCP connection. Others that may be named can't be this one's.
fn v2_source(family: u8, addresses: &[u8]) -> Option<SocketAddr> {
    match (family, addresses) {
        (0x11, [a, b, c, d, _, _, _, _, high, low, ..]) => {
            Some((Ipv4Addr::new(*a, *b, *c, *d), u16::from_be_bytes([*high, *low])).into())
        }
        (0x21, addresses) => {
            let ip = Ipv6Addr::from(*addresses.first_chunk::<16>()?);
            let [high, low] = *addresses.get(32..)?.first_chunk()?;
            Some((ip, u16::from_be_bytes([high, low])).into())
        }
        _ => None,
    }
}

/// Passes over the type-length-values, which are the last `length` bytes; a checksum among them must be right.
fn check_tlvs(header: &[u8], length: usize) -> Result<(), Refusal> {
    let mut at = header.len() - length;
    while at < header.len() {
        let &[kind, high, low] = header.get(at..at + TLV_HEAD_BYTES).ok_or(Refusal::Malformed)? else {
            return Err(Refusal::Malformed);
        };
        let value = at + TLV_HEAD_BYTES;
        let end = value + usize::from(u16::from_be_bytes([high, low]));
        let content = header.get(value..end).ok_or(Refusal::Malformed)?;
        if kind == CRC32C {
            let told: [u8; 4] = content.try_into().map_err(|_| Refusal::Malformed)?;
            let zeroed = header
                .iter()
                .enumerate()
                .map(|(at, byte)| if (value..end).contains(&at) { 0 } else { *byte });
            if crc32c(zeroed) != u32::from_be_bytes(told) {
                return Err(Refusal::BadChecksum);
            }
        }
        at = end;
    }
    Ok(())
}

/// RFC 9260 appendix A; bit by bit, for once a connection.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    /// Castagnoli's polynomial, reflected.
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
    !bytes.fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
pub(crate) mod tests;
