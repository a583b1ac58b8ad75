//! A session against rustls' client, without sockets: bytes cut everywhere, records of all sizes, what ends it.

use std::io::{Read, Write};
use std::mem::take;

use proptest::prelude::*;
use rustls::crypto::cipher::OutboundPlainMessage;
use rustls::crypto::{CipherSuiteCommon, CryptoProvider, aws_lc_rs};
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, HandshakeKind,
    SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
};

use super::*;
use crate::tls_stream::buffer::{BUFFER_BYTES, lent_and_free};
use crate::tls_stream::tests::keys::{Keys, VERSIONS, pattern, short_provider};

/// A client and a session, and the bytes between them.
struct Wire {
    client: ClientConnection,
    session: Session,
    /// All that the client has sent so far.
    sent: Vec<u8>,
    /// So much of it has been handed on.
    handed: usize,
    /// What the session has opened, and the client.
    opened: Vec<u8>,
    answered: Vec<u8>,
}

impl Wire {
    fn new(client: ClientConfig, server: ServerConfig) -> Self {
        let name = "localhost".try_into().unwrap();
        Self {
            client: ClientConnection::new(Arc::new(client), name).unwrap(),
            session: Session::new(Arc::new(server)).unwrap(),
            sent: Vec::new(),
            handed: 0,
            opened: Vec::new(),
            answered: Vec::new(),
        }
    }

    /// The same with the handshake done.
    fn connected(client: ClientConfig, server: ServerConfig) -> Self {
        let mut wire = Self::new(client, server);
        wire.shuttle(usize::MAX, 16 * 1024);
        assert!(!wire.client.is_handshaking() && !wire.session.is_handshaking());
        wire
    }

    /// Hands bytes on in both directions until there are none. The client's are cut at a place, and read with
    /// so much space.
    fn shuttle(&mut self, cut: usize, space: usize) {
        loop {
            while self.client.wants_write() {
                self.client.write_tls(&mut self.sent).unwrap();
            }
            if self.handed == self.sent.len() && self.session.waiting().is_empty() {
                return;
            }
            while self.handed < self.sent.len() {
                let end = if self.handed < cut { self.sent.len().min(cut) } else { self.sent.len() };
                self.hand(end, space);
            }
            self.answer();
        }
    }

    /// Hands the client's bytes on up to a place.
    fn hand(&mut self, end: usize, space: usize) {
        while self.handed < end {
            let free = self.session.space();
            let length = free.len().min(end - self.handed);
            free[..length].copy_from_slice(&self.sent[self.handed..self.handed + length]);
            self.handed += length;
            self.session.received(length);
            self.read(space);
            self.session.rest();
        }
    }

    /// Opens all that there is.
    fn read(&mut self, space: usize) {
        loop {
            let mut bytes = vec![0; space];
            let mut space = ReadBuf::new(&mut bytes);
            self.session.read(&mut space);
            if space.filled().is_empty() {
                return;
            }
            self.opened.extend_from_slice(space.filled());
        }
    }

    /// Hands on what the session has for the client, and returns how many records it was.
    fn answer(&mut self) -> usize {
        let waiting = self.session.waiting().to_vec();
        self.session.sent(waiting.len());
        let mut rest = &waiting[..];
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).unwrap();
            // Errors are for the test to look for.
            let _ = self.client.process_new_packets();
            let _ = self.client.reader().read_to_end(&mut self.answered);
        }
        records(&waiting)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.client.writer().write_all(bytes).unwrap();
        while self.client.wants_write() {
            self.client.write_tls(&mut self.sent).unwrap();
        }
    }

    fn client_has(&mut self) -> Vec<u8> {
        take(&mut self.answered)
    }
}

fn records(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let [_, _, _, high, low, rest @ ..] = bytes {
        bytes = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
        count += 1;
    }
    count
}

/// A connection in which the client says three things and goodbye.
fn conversation(version: usize, provider: &CryptoProvider, keys: &Keys, cut: usize, space: usize) -> Wire {
    let mut wire =
        Wire::new(keys.client_with(VERSIONS[version], provider.clone()), keys.server_with(provider.clone()));
    wire.shuttle(cut, space);
    for length in [1, 100, 20] {
        wire.send(&pattern(length));
    }
    wire.client.send_close_notify();
    wire.shuttle(cut, space);
    wire
}

#[test]
fn bytes_may_be_cut_anywhere() {
    let keys = Keys::new();
    let expected = [pattern(1), pattern(100), pattern(20)].concat();
    for version in [0, 1] {
        let whole = conversation(version, &short_provider(), &keys, usize::MAX, 64);
        for cut in 1..whole.sent.len() {
            let wire = conversation(version, &short_provider(), &keys, cut, 64);
            assert!(wire.session.failure.is_none(), "{version} {cut}: {:?}", wire.session.failure);
            assert_eq!(wire.opened, expected, "{version} {cut}");
            assert!(wire.session.is_peer_closed(), "{version} {cut}");
        }
    }
}

#[test]
fn bytes_may_come_one_by_one() {
    let keys = Keys::new();
    for version in VERSIONS {
        let mut wire = Wire::new(keys.client(version), keys.server());
        while wire.client.is_handshaking() || wire.session.is_handshaking() {
            wire.shuttle(wire.handed + 1, 10);
        }
        wire.send(&pattern(20_000));
        for end in wire.handed + 1..=wire.sent.len() {
            wire.hand(end, 10);
            assert_eq!(lent_and_free().0, usize::from(!wire.session.waiting().is_empty()));
        }
        assert_eq!(wire.opened, pattern(20_000));
    }
}

#[test]
fn space_of_any_size_is_filled_from_records_of_any_size() {
    let keys = Keys::new();
    for version in VERSIONS {
        let mut wire = Wire::connected(keys.client(version), keys.server());
        for space in [1, 7, 100, 1000, 16_384, 40_000] {
            let mut expected = Vec::new();
            for length in [0, 1, 16, 17, 100, 5000, 16_383, 16_384] {
                wire.send(&pattern(length));
                expected.extend_from_slice(&pattern(length));
            }
            wire.hand(wire.sent.len(), space);
            assert!(wire.opened == expected, "{space}");
            wire.opened.clear();
        }
        assert_eq!(wire.session.plain.capacity(), 0);
    }
}

#[test]
fn slices_are_sealed_in_as_few_records_as_they_fit() {
    let keys = Keys::new();
    for version in VERSIONS {
        let mut wire = Wire::connected(keys.client(version), keys.server());
        wire.answer();
        for (lengths, expected) in [
            (&[][..], 0),
            (&[0, 0], 0),
            (&[1], 1),
            (&[0, 5, 0, 1000, 0], 1),
            (&[200, 16_184], 1),
            (&[200, 16_185], 2),
            (&[16_384], 1),
            (&[16_385], 2),
            (&[100, 40_000, 3], 3),
            (&[1; 300], 1),
            (&[5000; 10], 4),
        ] {
            let parts: Vec<Vec<u8>> = lengths.iter().map(|length| pattern(*length)).collect();
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            assert_eq!(wire.session.write(&slices).unwrap(), lengths.iter().sum::<usize>());
            assert_eq!(wire.answer(), expected, "{lengths:?}");
            assert!(wire.client_has() == parts.concat(), "{lengths:?}");
            assert_eq!(lent_and_free().0, 0);
        }
    }
}

#[test]
fn no_more_is_sealed_at_once_than_a_buffer_holds() {
    let keys = Keys::new();
    for version in VERSIONS {
        let mut wire = Wire::connected(keys.client(version), keys.server());
        let (bytes, mut sealed) = (pattern(1_000_000), 0);
        while sealed < bytes.len() {
            let length = wire.session.write(&[IoSlice::new(&bytes[sealed..])]).unwrap();
            assert!((1..=4 * RECORD_BYTES).contains(&length));
            assert!(wire.session.waiting().len() <= BUFFER_BYTES);
            sealed += length;
            wire.answer();
            assert!(wire.client_has() == bytes[sealed - length..sealed]);
        }
    }
}

#[test]
fn a_session_may_write_before_it_has_read_what_came() {
    let keys = Keys::new();
    for version in VERSIONS {
        let mut wire = Wire::connected(keys.client(version), keys.server());
        for length in [500, 600, 700] {
            wire.send(&pattern(length));
        }
        // All of the first two records, and part of the third.
        let received = wire.sent[wire.handed..wire.sent.len() - 10].to_vec();
        wire.session.space()[..received.len()].copy_from_slice(&received);
        wire.session.received(received.len());
        wire.handed += received.len();
        let mut bytes = [0; 100];
        for _ in 0..5 {
            let mut space = ReadBuf::new(&mut bytes);
            wire.session.read(&mut space);
            wire.opened.extend_from_slice(space.filled());
            assert_eq!(wire.session.write(&[IoSlice::new(b"answer")]).unwrap(), 6);
            wire.answer();
            assert_eq!(wire.client_has(), b"answer");
        }
        wire.read(100);
        wire.session.write(&[IoSlice::new(b"answer")]).unwrap();
        wire.hand(wire.sent.len(), 100);
        assert!(wire.opened == [pattern(500), pattern(600), pattern(700)].concat());
    }
}

#[test]
fn keys_are_updated_when_the_client_asks() {
    let keys = Keys::new();
    let mut wire = Wire::connected(keys.client(VERSIONS[1]), keys.server());
    for round in 1..100 {
        wire.client.refresh_traffic_keys().unwrap();
        wire.send(&pattern(round));
        wire.hand(wire.sent.len(), 1000);
        assert!(wire.opened == pattern(round));
        wire.opened.clear();
        assert!(wire.session.waiting().is_empty(), "it goes with what is written next");
        if round % 3 == 0 {
            wire.session.write(&[IoSlice::new(b"answer")]).unwrap();
            wire.shuttle(usize::MAX, 1000);
            assert_eq!(wire.client_has(), b"answer");
        }
    }
}

/// The default suites, except that keys are used up after so many records.
fn worn(records: u64) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    for suite in &mut provider.cipher_suites {
        let common = |common: &CipherSuiteCommon| CipherSuiteCommon {
            suite: common.suite,
            hash_provider: common.hash_provider,
            confidentiality_limit: records,
        };
        *suite = match suite {
            SupportedCipherSuite::Tls13(suite) => {
                SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
                    common: common(&suite.common),
                    hkdf_provider: suite.hkdf_provider,
                    aead_alg: suite.aead_alg,
                    quic: suite.quic,
                })))
            }
            SupportedCipherSuite::Tls12(suite) => {
                SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
                    common: common(&suite.common),
                    prf_provider: suite.prf_provider,
                    kx: suite.kx,
                    sign: suite.sign,
                    aead_alg: suite.aead_alg,
                })))
            }
        };
    }
    provider
}

#[test]
fn keys_that_are_used_up_are_updated_or_end_the_connection() {
    let keys = Keys::new();
    let bytes = pattern(100_000);
    let mut wire = Wire::connected(keys.client(VERSIONS[1]), keys.server_with(worn(10)));
    for _ in 0..50 {
        let length = wire.session.write(&[IoSlice::new(&bytes)]).unwrap();
        wire.shuttle(usize::MAX, 100);
        assert!(wire.client_has() == bytes[..length]);
    }
    let mut wire = Wire::connected(keys.client(VERSIONS[0]), keys.server_with(worn(10)));
    let failed = (0..50).any(|_| {
        let result = wire.session.write(&[IoSlice::new(&bytes)]);
        wire.answer();
        result.is_err()
    });
    assert!(failed && wire.session.write(&[IoSlice::new(b"x")]).is_err());
    assert_eq!(wire.client.reader().read(&mut [0]).unwrap(), 0, "the client was told");
}

#[test]
fn a_client_that_has_guessed_the_key_exchange_wrong_is_asked_again() {
    let keys = Keys::new();
    let provider =
        CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::SECP384R1], ..aws_lc_rs::default_provider() };
    let wire = Wire::connected(keys.client(VERSIONS[1]), keys.server_with(provider));
    assert_eq!(wire.client.handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
}

#[test]
fn a_certificate_longer_than_a_buffer_is_sent_all_the_same() {
    let keys = Keys::new();
    // rustls' client would not take it, so the session alone is asked.
    let server = keys.server_with_chain(vec![keys.certificate.clone(), vec![7; 3 * BUFFER_BYTES].into()]);
    let mut wire = Wire::new(keys.client(VERSIONS[1]), server);
    while wire.client.wants_write() {
        wire.client.write_tls(&mut wire.sent).unwrap();
    }
    wire.hand(wire.sent.len(), 0);
    assert!(wire.session.waiting().len() > 3 * BUFFER_BYTES && wire.session.failure.is_none());
    assert!(records(wire.session.waiting()) >= 13);
}

#[test]
fn what_is_not_tls_is_answered_with_an_alert_once() {
    let keys = Keys::new();
    let wire = || Wire::connected(keys.client(VERSIONS[1]), keys.server());
    let fresh = || Wire::new(keys.client(VERSIONS[1]), keys.server());
    let too_long = [&[23, 3, 3, 0x48, 0x01][..], &[0; 100]].concat();
    for (mut wire, bytes) in [
        (fresh(), b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        (fresh(), vec![0; 100]),
        (fresh(), vec![22, 3, 1, 0xff, 0xff]),
        (wire(), too_long),
        (wire(), [&[23, 3, 3, 0, 40][..], &[7; 40]].concat()),
        (wire(), vec![21, 3, 3, 0, 2, 2, 40]),
    ] {
        wire.session.drop_waiting();
        wire.sent = bytes;
        wire.handed = 0;
        wire.hand(wire.sent.len(), 100);
        let error = wire.session.failure().expect("it is no TLS");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(records(wire.session.waiting()), 1, "{error}");
        assert!(wire.opened.is_empty());
        wire.hand(wire.sent.len(), 100);
        wire.session.close();
        assert!(wire.session.write(&[IoSlice::new(b"x")]).is_err());
        assert_eq!(records(wire.session.waiting()), 1, "{error}");
    }
}

#[test]
fn plaintext_that_came_before_an_error_is_read_first() {
    let keys = Keys::new();
    for version in VERSIONS {
        let mut wire = Wire::connected(keys.client(version), keys.server());
        wire.send(b"fine");
        wire.sent.extend_from_slice(&[23, 3, 3, 0, 40]);
        wire.sent.extend_from_slice(&[7; 40]);
        wire.hand(wire.sent.len(), 100);
        assert_eq!(wire.opened, b"fine");
        assert!(wire.session.failure.is_some());
    }
}

#[test]
fn after_a_close_notify_nothing_more_is_read_but_writing_goes_on() {
    let keys = Keys::new();
    for version in VERSIONS {
        let mut wire = Wire::connected(keys.client(version), keys.server());
        wire.send(b"last");
        wire.client.send_close_notify();
        wire.send(b"");
        wire.sent.extend_from_slice(&[7; 1000]);
        wire.hand(wire.sent.len(), 3);
        assert_eq!(wire.opened, b"last");
        assert!(wire.session.is_peer_closed() && wire.session.failure.is_none());
        assert_eq!(wire.session.held_bytes(), wire.session.outgoing.held_bytes());
        assert_eq!(wire.session.write(&[IoSlice::new(b"answer")]).unwrap(), 6);
        wire.session.close();
        wire.answer();
        assert_eq!(wire.client_has(), b"answer");
        assert_eq!(wire.client.reader().read(&mut [0]).unwrap(), 0, "the client was told");
        assert_eq!(lent_and_free().0, 0);
    }
}

/// A key update of the client, each byte of it in a record of its own, after two records of plaintext.
fn key_update_in_parts(wire: Wire, is_answer_wanted: bool) -> (Session, Vec<u8>) {
    let SupportedCipherSuite::Tls13(suite) = wire.client.negotiated_cipher_suite().unwrap() else {
        panic!("TLS 1.3 is the one that has key updates")
    };
    let (mut sequence, secrets) = wire.client.dangerous_extract_secrets().unwrap().tx;
    let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else {
        panic!("no such suite was offered")
    };
    let mut encrypter = suite.aead_alg.encrypter(key, iv);
    let mut sealed = Vec::new();
    let update = [24, 0, 0, 1, u8::from(is_answer_wanted)];
    let parts = [(ContentType::ApplicationData, &b"one"[..]), (ContentType::ApplicationData, b"three")];
    for (typ, bytes) in parts.into_iter().chain(update.chunks(1).map(|byte| (ContentType::Handshake, byte))) {
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload: bytes.into() };
        sealed.extend_from_slice(&encrypter.encrypt(message, sequence).unwrap().encode());
        sequence += 1;
    }
    (wire.session, sealed)
}

#[test]
fn a_session_may_write_while_it_has_a_handshake_message_in_part() {
    let keys = Keys::new();
    let provider = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
        ..aws_lc_rs::default_provider()
    };
    for (step, space) in
        [1, 2, 3, 10, 25, 40, 1000].into_iter().flat_map(|step| [(step, 1), (step, 4), (step, 9)])
    {
        let mut client = keys.client_with(VERSIONS[1], provider.clone());
        client.enable_secret_extraction = true;
        let wire = Wire::connected(client, keys.server());
        let (mut session, sealed) = key_update_in_parts(wire, step % 2 == 0);
        let mut opened = Vec::new();
        for piece in sealed.chunks(step) {
            session.space()[..piece.len()].copy_from_slice(piece);
            session.received(piece.len());
            for _ in 0..10 {
                let mut bytes = vec![0; space];
                let mut space = ReadBuf::new(&mut bytes);
                session.read(&mut space);
                opened.extend_from_slice(space.filled());
                assert_eq!(session.write(&[IoSlice::new(b"answer")]).unwrap(), 6);
                session.sent(session.waiting().len());
            }
            session.rest();
        }
        assert_eq!(opened, b"onethree", "{step} {space}");
        assert_eq!((session.held_bytes(), session.is_settled), (0, true));
    }
}

/// What may happen, in any order.
#[derive(Clone, Debug)]
enum Event {
    ClientSays(usize),
    ClientUpdatesKeys,
    Receive(usize),
    Read(usize),
    Rest,
    Write(Vec<usize>),
    Answer,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..20_000_usize).prop_map(Event::ClientSays),
        1 => Just(Event::ClientUpdatesKeys),
        6 => (1..30_000_usize).prop_map(Event::Receive),
        6 => (1..20_000_usize).prop_map(Event::Read),
        2 => Just(Event::Rest),
        3 => prop::collection::vec(0..20_000_usize, 0..5).prop_map(Event::Write),
        2 => Just(Event::Answer),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn whatever_the_order_both_sides_read_what_the_other_wrote(
        version in 0..2_usize,
        events in prop::collection::vec(event(), 1..60),
    ) {
        let keys = Keys::new();
        let mut wire = Wire::connected(keys.client(VERSIONS[version]), keys.server());
        wire.client.set_buffer_limit(None);
        let (mut said, mut written) = (Vec::new(), Vec::new());
        for event in events {
            match event {
                Event::ClientSays(length) => {
                    wire.send(&pattern(length));
                    said.extend_from_slice(&pattern(length));
                }
                Event::ClientUpdatesKeys => {
                    let _ = wire.client.refresh_traffic_keys();
                }
                Event::Receive(length) if wire.session.is_settled && wire.session.plain.is_empty() => {
                    // What is left of a record that has come in part takes some of the space.
                    let room = length.min(wire.session.space().len());
                    let end = wire.sent.len().min(wire.handed + room);
                    let bytes = wire.sent[wire.handed..end].to_vec();
                    wire.session.space()[..bytes.len()].copy_from_slice(&bytes);
                    wire.session.received(bytes.len());
                    wire.handed = end;
                    let mut none = ReadBuf::new(&mut []);
                    wire.session.read(&mut none);
                }
                Event::Receive(_) => {}
                Event::Read(length) => {
                    let mut bytes = vec![0; length];
                    let mut space = ReadBuf::new(&mut bytes);
                    wire.session.read(&mut space);
                    wire.opened.extend_from_slice(space.filled());
                }
                Event::Rest => wire.session.rest(),
                Event::Write(lengths) => {
                    wire.answer();
                    let parts: Vec<Vec<u8>> = lengths.into_iter().map(pattern).collect();
                    let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
                    let length = wire.session.write(&slices).unwrap();
                    written.extend_from_slice(&parts.concat()[..length]);
                }
                Event::Answer => {
                    wire.answer();
                }
            }
            prop_assert!(wire.session.failure.is_none(), "{:?}", wire.session.failure);
            prop_assert!(said.starts_with(&wire.opened) && written.starts_with(&wire.answered));
        }
        wire.read(1000);
        wire.shuttle(usize::MAX, 1000);
        prop_assert!(wire.opened == said && wire.answered == written);
        prop_assert_eq!((wire.session.held_bytes(), lent_and_free().0), (0, 0));
    }

    #[test]
    fn a_changed_byte_anywhere_ends_the_session_and_nothing_else(
        version in 0..2_usize,
        at in any::<prop::sample::Index>(),
        change in 1..=255_u8,
        space in 1..200_usize,
    ) {
        let keys = Keys::new();
        let mut wire = Wire::new(keys.client(VERSIONS[version]), keys.server());
        let expected = pattern(1000);
        // The client's first message, or what it says later.
        if at.index(3) > 0 {
            wire.shuttle(usize::MAX, 100);
            wire.send(&expected);
        } else {
            wire.client.write_tls(&mut wire.sent).unwrap();
        }
        let end = wire.sent.len();
        let changed = wire.handed + at.index(end - wire.handed);
        wire.sent[changed] ^= change;
        wire.hand(end, space);
        prop_assert!(expected.starts_with(&wire.opened));
        if wire.session.failure.is_some() {
            prop_assert!(wire.session.write(&[IoSlice::new(b"x")]).is_err());
            prop_assert_eq!(wire.session.incoming.held_bytes(), 0);
        }
        wire.session.close();
    }
}
