//! The rules of framing, one by one, and that a verdict does not depend on how the bytes were cut.

use proptest::prelude::*;

use super::decoder::Decoder;
use super::*;

mod corpus;
mod cuts;
mod others;

#[derive(Debug)]
enum Followed {
    More,
    Head { length: usize, ends: bool },
    Body { length: usize, ends: bool },
    Refused(Rule),
}

/// Follows the requests of a connection: what is sound goes on.
struct Framing {
    scan: Scan,
    body: Decoder,
    bounds: Bounds,
}

impl Framing {
    fn new(bytes: usize, fields: usize) -> Self {
        let bounds = Bounds { bytes, fields };
        Self { scan: Scan::request(), body: Decoder::new(Content::Fixed(0), bounds), bounds }
    }

    fn step(&mut self, bytes: &[u8]) -> Followed {
        self.try_step(bytes).unwrap_or_else(Followed::Refused)
    }

    fn try_step(&mut self, bytes: &[u8]) -> Result<Followed, Rule> {
        if !self.body.has_ended() {
            let step = self.body.step(bytes)?;
            let ends = self.body.has_ended();
            return Ok(match step.consumed {
                0 => Followed::More,
                length => Followed::Body { length, ends },
            });
        }
        let Some(length) = self.scan.advance(bytes, self.bounds)? else { return Ok(Followed::More) };
        let (_, content) = std::mem::replace(&mut self.scan, Scan::request()).into_request()?;
        self.body = Decoder::new(content, self.bounds);
        Ok(Followed::Head { length, ends: self.body.has_ended() })
    }
}

const MAX_HEAD_BYTES: usize = 1024;
const MAX_HEADERS: usize = 8;

/// What came of a whole stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Story {
    passed: usize,
    heads: usize,
    messages: usize,
    refused: Option<Rule>,
}

/// Feeds a stream in the given pieces, as a connection would.
fn follow<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Story {
    let mut framing = Framing::new(MAX_HEAD_BYTES, MAX_HEADERS);
    let mut story = Story::default();
    let mut waiting = Vec::new();
    for piece in pieces {
        waiting.extend_from_slice(piece);
        loop {
            let (length, ends) = match framing.step(&waiting) {
                Followed::More => break,
                Followed::Head { length, ends } => {
                    story.heads += 1;
                    (length, ends)
                }
                Followed::Body { length, ends } => (length, ends),
                Followed::Refused(rule) => {
                    story.refused = Some(rule);
                    return story;
                }
            };
            waiting.drain(..length);
            story.passed += length;
            story.messages += usize::from(ends);
        }
    }
    story
}

fn whole(stream: &[u8]) -> Story {
    follow([stream])
}

#[test]
fn sound_messages_pass_to_their_last_byte() {
    let streams: [(&[u8], usize); 12] = [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1),
        (b"GET / HTTP/1.0\r\n\r\n", 1),
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 1),
        (b"OPTIONS * HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", 1),
        (b"GET http://a.example:80/x?y HTTP/1.1\r\nHost: a.example:80\r\n\r\n", 1),
        (b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", 1),
        (b"GET /a|{b}?c=\\`d HTTP/1.1\r\nHost:a\r\nEmpty:\r\nHigh: \xff\tx\r\n\r\n", 1),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n", 2),
        (b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length:   0  \r\n\r\n", 1),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 1),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3;a;b=c;d=\"e\\\"f\"\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\n", 1),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n000\r\nDigest: x\r\n\r\n", 1),
    ];
    for (stream, messages) in streams {
        let text = String::from_utf8_lossy(stream);
        let expected = Story { passed: stream.len(), heads: messages, messages, refused: None };
        assert_eq!(whole(stream), expected, "{text:?}");
    }
}

/// A rule and what breaks it, behind a sound message that must pass.
const BROKEN: &[(Rule, &[u8])] = &[
    (Rule::BadMethod, b"\x16\x03\x01\x02\x00\x01"),
    (Rule::BadMethod, b" / HTTP/1.1\r\n"),
    (Rule::BadMethod, b"G@T / HTTP/1.1\r\n"),
    (Rule::BadMethod, b"GET\r\n"),
    (Rule::BadMethod, b"\r\n\r\nGET / HTTP/1.1\r\n"),
    (Rule::BareLf, b"\nGET / HTTP/1.1\r\n"),
    (Rule::BareCr, b"\rGET / HTTP/1.1\r\n"),
    (Rule::BadTarget, b"GET  HTTP/1.1\r\n"),
    (Rule::BadTarget, b"GET nowhere HTTP/1.1\r\n"),
    (Rule::BadTarget, b"GET * HTTP/1.1\r\n"),
    (Rule::BadTarget, b"GET ftp://a/ HTTP/1.1\r\n"),
    (Rule::BadTarget, b"GET http://user@a/ HTTP/1.1\r\n"),
    (Rule::BadTarget, b"CONNECT a HTTP/1.1\r\n"),
    (Rule::BadTarget, b"GET /a#b HTTP/1.1\r\n"),
    (Rule::BadTarget, b"GET /a\x00b HTTP/1.1\r\n"),
    (Rule::BadTarget, b"GET /\xc3\xa4 HTTP/1.1\r\n"),
    (Rule::BadTarget, b"GET /a\tb HTTP/1.1\r\n"),
    (Rule::BadVersion, b"GET /a b HTTP/1.1\r\n"),
    (Rule::BadVersion, b"GET /\r\n"),
    (Rule::BareLf, b"GET /\n"),
    (Rule::BadVersion, b"GET / \r\n"),
    (Rule::BadVersion, b"GET / http/1.1\r\n"),
    (Rule::BadVersion, b"GET / HTTP/1.11\r\n"),
    (Rule::BadVersion, b"GET / HTTP/1.1 \r\n"),
    (Rule::BadVersion, b"GET / HTTP/1\r\n"),
    (Rule::UnsupportedVersion, b"GET / HTTP/2.0\r\n"),
    (Rule::UnsupportedVersion, b"GET / HTTP/2\r\n"),
    (Rule::UnsupportedVersion, b"GET / HTTP/3.0\r\n"),
    (Rule::UnsupportedVersion, b"GET / HTTP/0.9\r\n"),
    (Rule::UnsupportedVersion, b"GET / HTTP/1.2\r\n"),
    (Rule::BareLf, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    (Rule::BareCr, b"GET / HTTP/1.1\rHost: a\r\n\r\n"),
    (Rule::BareLf, b"GET / HTTP/1.1\r\nHost: a\n\r\n"),
    (Rule::BareLf, b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    (Rule::BareCr, b"GET / HTTP/1.1\r\nHost: a\r\n\rX"),
    (Rule::BareCr, b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n"),
    (Rule::ObsFold, b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n"),
    (Rule::ObsFold, b"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n"),
    (Rule::SpaceBeforeColon, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
    (Rule::SpaceBeforeColon, b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n"),
    (Rule::BadFieldName, b"GET / HTTP/1.1\r\n: a\r\n\r\n"),
    (Rule::BadFieldName, b"GET / HTTP/1.1\r\nHo(st: a\r\n\r\n"),
    (Rule::BadFieldName, b"GET / HTTP/1.1\r\nHost\r\n\r\n"),
    (Rule::BadFieldName, b"GET / HTTP/1.1\r\nX\xff: a\r\n\r\n"),
    (Rule::BadFieldValue, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n"),
    (Rule::BadFieldValue, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n"),
    (Rule::BadFieldValue, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x0bb\r\n\r\n"),
    (
        Rule::ContentLengthTwice,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    ),
    (Rule::BadContentLength, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n"),
    (Rule::BadContentLength, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n"),
    (Rule::BadContentLength, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n"),
    (Rule::BadContentLength, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
    (Rule::BadContentLength, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1111111111111111111\r\n\r\n"),
    (
        Rule::LengthAndEncoding,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    (
        Rule::LengthAndEncoding,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
    ),
    (Rule::BadTransferEncoding, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    (Rule::BadTransferEncoding, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"),
    (Rule::BadTransferEncoding, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
    (Rule::BadTransferEncoding, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n"),
    (
        Rule::BadTransferEncoding,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    (Rule::BadTransferEncoding, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (Rule::MissingHost, b"GET / HTTP/1.1\r\n\r\n"),
    (Rule::HostTwice, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    (Rule::BadHost, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    (Rule::BadHost, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    (Rule::BadHost, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    (Rule::BadHost, b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n"),
    (Rule::BadHost, b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n"),
    (Rule::BadHost, b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"),
    (Rule::ConnectWithBody, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 1\r\n\r\n"),
    (Rule::TooManyHeaders, b"GET / HTTP/1.1\r\na:\r\nb:\r\nc:\r\nd:\r\ne:\r\nf:\r\ng:\r\nh:\r\ni:\r\n\r\n"),
];

#[test]
fn what_breaks_a_rule_is_refused_by_its_name_and_what_came_before_passes() {
    let sound = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (rule, bytes) in BROKEN {
        let stream = [&sound[..], bytes].concat();
        let expected = Story { passed: sound.len(), heads: 1, messages: 1, refused: Some(*rule) };
        assert_eq!(whole(&stream), expected, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn a_head_may_be_as_long_as_the_limit_and_no_longer() {
    let head = |length: usize| {
        let mut head = b"GET / HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
        head.resize(length - 4, b'x');
        head.extend_from_slice(b"\r\n\r\n");
        head
    };
    assert_eq!(whole(&head(MAX_HEAD_BYTES)).heads, 1);
    assert_eq!(whole(&head(MAX_HEAD_BYTES + 1)).refused, Some(Rule::HeadTooLarge));
}

const CHUNKED: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_chunk_that_breaks_a_rule_is_refused_behind_what_was_sound() {
    let broken: [(Rule, usize, &[u8]); 19] = [
        (Rule::BadChunkSize, 0, b"x\r\n"),
        (Rule::BadChunkSize, 0, b"\r\n"),
        (Rule::BadChunkSize, 0, b"-1\r\n"),
        (Rule::BadChunkSize, 0, b" 1\r\na\r\n"),
        (Rule::BadChunkSize, 0, b"1 \r\na\r\n"),
        (Rule::BadChunkSize, 0, b"0x1\r\na\r\n"),
        (Rule::BadChunkSize, 0, b"1111111111111111\r\n"),
        (Rule::BareLf, 0, b"1\na\r\n"),
        (Rule::BareCr, 0, b"1\r\ra"),
        (Rule::BadChunkExtension, 0, b"1;\r\na\r\n"),
        (Rule::BadChunkExtension, 0, b"1; a\r\na\r\n"),
        (Rule::BadChunkExtension, 0, b"1;a=\"\n\"\r\na\r\n"),
        (Rule::ChunkNotEnded, 4, b"1\r\nab\r\n"),
        (Rule::BadTrailer, 3, b"0\r\nContent-Length: 1\r\n\r\n"),
        (Rule::BadTrailer, 3, b"0\r\nProtoplex-Epoch: 1\r\n\r\n"),
        (Rule::BadTrailer, 3, b"0\r\nX-Forwarded-Host: a\r\n\r\n"),
        (Rule::BadTrailer, 3, b"0\r\nFORWARDED: a\r\n\r\n"),
        (Rule::BadTrailer, 3, b"0\r\nx_real_ip: a\r\n\r\n"),
        (Rule::BareLf, 3, b"0\r\n\n"),
    ];
    for (rule, sound, bytes) in broken {
        let stream = [CHUNKED, bytes].concat();
        let expected = Story { passed: CHUNKED.len() + sound, heads: 1, messages: 0, refused: Some(rule) };
        assert_eq!(whole(&stream), expected, "{:?}", String::from_utf8_lossy(bytes));
    }
    let long = [CHUNKED, b"1;", &[b'x'; 300], b"\r\na\r\n0\r\n\r\n"].concat();
    assert_eq!(whole(&long).refused, Some(Rule::BadChunkExtension));
}

#[test]
fn every_cut_of_a_few_streams_has_the_same_verdict() {
    let sound = [CHUNKED, b"3;a=\"b\"\r\nabc\r\n0\r\nDigest: x\r\n\r\nGET / HTTP/1.0\r\n\r\n"].concat();
    for stream in BROKEN.iter().map(|(_, bytes)| *bytes).chain([&sound[..]]) {
        let expected = whole(stream);
        for at in 0..=stream.len() {
            let (first, second) = stream.split_at(at);
            assert_eq!(
                follow([first, second]),
                expected,
                "{:?} cut at {at}",
                String::from_utf8_lossy(stream)
            );
        }
        let bytewise = stream.chunks(1);
        assert_eq!(follow(bytewise), expected, "{:?} byte by byte", String::from_utf8_lossy(stream));
    }
}

/// Pieces of which sound and broken streams are made.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&'static [u8]> = vec![
        b"GET / HTTP/1.1\r\n",
        b"POST /a?b HTTP/1.1\r\n",
        b"PUT / HTTP/1.0\r\n",
        b"Host: a\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"X: y\r\n",
        b": ",
        b"hello",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nDigest: z\r\n\r\n",
        b"5;a=b\r\n",
        b"HTTP/2.0",
        b"\x00",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    ];
    prop_oneof![
        8 => prop::sample::select(known).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ]
}

proptest! {
    #[test]
    fn however_a_stream_is_cut_the_verdict_is_the_same(
        fragments in prop::collection::vec(fragment(), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stream = fragments.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&stream[from..cut]);
            from = cut;
        }
        pieces.push(&stream[from..]);
        prop_assert_eq!(follow(pieces), whole(&stream));
    }

    #[test]
    fn what_passes_as_a_head_is_what_the_engine_takes(fragments in prop::collection::vec(fragment(), 0..12)) {
        let stream = fragments.concat();
        let mut framing = Framing::new(MAX_HEAD_BYTES, MAX_HEADERS);
        if let Followed::Head { length, .. } = framing.step(&stream) {
            let head = std::str::from_utf8(&stream[..length]).unwrap();
            let target = head.trim_start().split(' ').nth(1).unwrap();
            prop_assert!(target.parse::<http::Uri>().is_ok(), "{:?}", target);
        }
    }
}
