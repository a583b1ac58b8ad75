//! One TLS connection without its socket: sealed bytes in and out, plaintext out and in.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, WriteTraffic};
use rustls::{ProtocolVersion, ServerConfig};
use tokio::io::ReadBuf;

use super::buffer::Buffer;

/// How much plaintext a record holds at most (RFC 8446 section 5.1).
const RECORD_BYTES: usize = 16 * 1024;
/// How much longer a record is when it is sealed, in the versions and suites of today, and a key update that
/// may go before it. A guess: if it is too low, the buffer grows.
const SEAL_BYTES: usize = 64;
/// What every cipher suite adds to a record at least: its tag.
const TAG_BYTES: usize = 16;

/// What happens to bytes on their way.
///
/// | from | to | held meanwhile |
/// | --- | --- | --- |
/// | the peer | [`Self::space`], [`Self::received`] | `incoming`: a record that has not come whole, or for which nobody has space yet |
/// | rustls | [`Self::read`] | `plain`: the rest of a record that was longer than the reader's space |
/// | [`Self::write`], rustls | [`Self::waiting`], [`Self::sent`] | `outgoing`: what the socket has not taken |
pub(super) struct Session {
    tls: UnbufferedServerConnection,
    incoming: Buffer,
    plain: BytesMut,
    outgoing: Buffer,
    /// rustls has taken of `incoming` all that it can. If not, the last that it took was plaintext, so that it
    /// keeps no marks in `incoming` (as it does for a handshake message in parts): only then it may be shown
    /// other bytes, or none.
    is_settled: bool,
    is_peer_closed: bool,
    is_closed: bool,
    failure: Option<Box<rustls::Error>>,
}

/// What rustls is asked for.
enum Want<'a, 'b> {
    /// To go on with what was received, and put the plaintext here.
    Read(&'a mut ReadBuf<'b>),
    /// To seal these.
    Write(&'a [IoSlice<'a>]),
    /// To seal a close_notify.
    Close,
}

enum Step {
    /// Whatever was done, there may be more.
    Again,
    /// There was plaintext.
    Read,
    /// Nothing more can be done with what was received.
    Settled,
    /// So much plaintext was sealed.
    Sealed(usize),
}

impl Session {
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            tls: UnbufferedServerConnection::new(config)?,
            incoming: Buffer::default(),
            plain: BytesMut::new(),
            outgoing: Buffer::default(),
            is_settled: true,
            is_peer_closed: false,
            is_closed: false,
            failure: None,
        })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Whether the peer can't go on before it has had all of our handshake. Under TLS 1.3 what is left of that
    /// in the end is session tickets, which may as well go with the first answer.
    pub(super) fn is_awaited(&self) -> bool {
        self.tls.protocol_version() != Some(ProtocolVersion::TLSv1_3)
    }

    pub(super) fn alpn_protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// Whether the peer has sent a close_notify. What came before it may still be there to read.
    pub(super) fn is_peer_closed(&self) -> bool {
        self.is_peer_closed
    }

    /// Whether [`Self::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// What has ended this connection for good. An alert may be waiting that tells the peer.
    pub(super) fn failure(&self) -> Option<io::Error> {
        let error = self.failure.as_deref()?;
        Some(io::Error::new(io::ErrorKind::InvalidData, error.clone()))
    }

    /// Space for what comes from the peer, to be told of by [`Self::received`]. None if the peer sends a
    /// message without end.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.incoming.space()
    }

    pub(super) fn received(&mut self, length: usize) {
        self.incoming.advance(length);
        self.is_settled = false;
    }

    /// Nothing is expected from the peer for a while.
    pub(super) fn rest(&mut self) {
        self.incoming.shrink();
    }

    /// What is to be sent to the peer, to be told of by [`Self::sent`].
    pub(super) fn waiting(&self) -> &[u8] {
        self.outgoing.bytes()
    }

    pub(super) fn sent(&mut self, length: usize) {
        self.outgoing.consume(length);
    }

    /// Drops what is to be sent, as it can't be.
    pub(super) fn drop_waiting(&mut self) {
        self.outgoing.release();
    }

    /// Goes on with the handshake as far as what was received allows.
    pub(super) fn shake_hands(&mut self) {
        self.read(&mut ReadBuf::new(&mut []));
    }

    /// Opens what was received, until there is no space or no whole record left, or the connection has failed.
    pub(super) fn read(&mut self, space: &mut ReadBuf<'_>) {
        if !self.plain.is_empty() {
            self.read_plain(space);
            if self.is_too_long(space.remaining()) {
                return;
            }
        }
        while self.plain.is_empty() && !self.is_settled {
            match self.step(Want::Read(space)) {
                // Only here it is safe to stop, see `is_settled`.
                Ok(Step::Read) if self.is_too_long(space.remaining()) => return,
                Ok(Step::Again | Step::Read | Step::Sealed(_)) => {}
                Ok(Step::Settled) => self.is_settled = true,
                Err(error) => self.fail(error),
            }
        }
    }

    /// How much memory there is for bytes on their way.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.incoming.held_bytes() + self.outgoing.held_bytes() + self.plain.capacity()
    }

    fn read_plain(&mut self, space: &mut ReadBuf<'_>) {
        let length = self.plain.len().min(space.remaining());
        space.put_slice(&self.plain[..length]);
        self.plain.advance(length);
        if self.plain.is_empty() {
            self.plain = BytesMut::new();
        }
    }

    /// Whether the next record is better left as it is: what finds no space would have to be copied twice.
    fn is_too_long(&self, space: usize) -> bool {
        match self.incoming.bytes() {
            [_, _, _, high, low, ..] => {
                let sealed = usize::from(u16::from_be_bytes([*high, *low]));
                sealed.saturating_sub(TAG_BYTES) > space
            }
            _ => false,
        }
    }

    /// Seals of the slices what a buffer takes, and returns how much that is. Whoever calls it has seen to it
    /// that what was sealed before is sent.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            match self.step(Want::Write(slices)) {
                Ok(Step::Sealed(length)) => return Ok(length),
                Ok(Step::Settled) => return Err(io::ErrorKind::BrokenPipe.into()),
                Ok(Step::Again | Step::Read) => {}
                Err(error) => self.fail(error),
            }
        }
    }

    /// Seals a close_notify, unless an alert has said as much already.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        while self.failure.is_none() {
            match self.step(Want::Close) {
                Ok(Step::Sealed(_) | Step::Settled) => return,
                Ok(Step::Again | Step::Read) => {}
                Err(error) => self.fail(error),
            }
        }
    }

    /// Lets rustls go on until it wants or has something. The one place where it is asked.
    fn step(&mut self, mut want: Want<'_, '_>) -> Result<Step, rustls::Error> {
        let received = match want {
            Want::Write(_) | Want::Close if !self.is_settled => &mut [],
            _ => self.incoming.bytes_mut(),
        };
        let status = self.tls.process_tls_records(received);
        let mut discard = status.discard;
        let step = match status.state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    deliver(record.payload, want.space(), &mut self.plain);
                }
                Step::Read
            }
            ConnectionState::EncodeTlsData(mut data) => {
                encode(&mut data, &mut self.outgoing);
                Step::Again
            }
            ConnectionState::TransmitTlsData(data) => {
                // It waits in `outgoing`, before whatever comes.
                data.done();
                Step::Again
            }
            ConnectionState::WriteTraffic(mut traffic) => match want {
                Want::Read(_) => Step::Settled,
                Want::Write(slices) => Step::Sealed(seal(&mut traffic, slices, &mut self.outgoing)?),
                Want::Close => Step::Sealed(seal_close(&mut traffic, &mut self.outgoing)?),
            },
            ConnectionState::PeerClosed => {
                self.is_peer_closed = true;
                Step::Again
            }
            ConnectionState::BlockedHandshake | ConnectionState::Closed => Step::Settled,
            // Early data, which our configuration does not allow, and what later versions may add.
            _ => return Err(rustls::Error::General("rustls is in a state that is not known".into())),
        };
        self.incoming.consume(discard);
        if self.is_peer_closed {
            // Whatever comes after a close_notify is ignored (RFC 8446 section 6.1).
            self.incoming.release();
        }
        if matches!(step, Step::Read) {
            self.is_settled = self.incoming.is_empty() && !self.tls.wants_write();
        }
        Ok(step)
    }

    /// Takes note of the end, and keeps the alert that rustls has for the peer.
    fn fail(&mut self, error: rustls::Error) {
        self.failure = Some(Box::new(error));
        self.incoming.release();
        self.is_settled = true;
        while self.tls.wants_write() {
            match self.tls.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut self.outgoing),
                _ => return,
            }
        }
    }
}

impl<'b> Want<'_, 'b> {
    fn space(&mut self) -> Option<&mut ReadBuf<'b>> {
        match self {
            Self::Read(space) => Some(space),
            Self::Write(_) | Self::Close => None,
        }
    }
}

fn deliver(bytes: &[u8], space: Option<&mut ReadBuf<'_>>, plain: &mut BytesMut) {
    let mut rest = bytes;
    if let (Some(space), true) = (space, plain.is_empty()) {
        let (now, later) = bytes.split_at(bytes.len().min(space.remaining()));
        space.put_slice(now);
        rest = later;
    }
    plain.extend_from_slice(rest);
}

fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, outgoing: &mut Buffer) {
    let mut needed = 0;
    // The data is lost with `data`, so there has to be space.
    loop {
        match data.encode(outgoing.space_for(needed)) {
            Ok(length) => return outgoing.advance(length),
            Err(EncodeError::InsufficientSize(error)) => needed = error.required_size,
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

fn seal_close(
    traffic: &mut WriteTraffic<'_, ServerConnectionData>,
    outgoing: &mut Buffer,
) -> Result<usize, rustls::Error> {
    // If there is nothing to say any more, that takes no space.
    let length = traffic.queue_close_notify(outgoing.space_for(SEAL_BYTES)).map_err(refused)?;
    outgoing.advance(length);
    Ok(length)
}

/// Seals what there is space for, in records as long as they may be.
fn seal(
    traffic: &mut WriteTraffic<'_, ServerConnectionData>,
    slices: &[IoSlice<'_>],
    outgoing: &mut Buffer,
) -> Result<usize, rustls::Error> {
    let mut source = Source { slices, at: 0 };
    let mut left: usize = slices.iter().map(|slice| slice.len()).sum();
    let mut joined = Buffer::default();
    let mut sealed = 0;
    while left > 0 {
        let length = left.min(RECORD_BYTES);
        if sealed > 0 && outgoing.space().len() < length + SEAL_BYTES {
            break;
        }
        let record = source.take(length, &mut joined);
        let mut needed = length + SEAL_BYTES;
        let written = loop {
            match traffic.encrypt(record, outgoing.space_for(needed)) {
                Err(EncryptError::InsufficientSize(error)) => needed = error.required_size,
                written => break written.map_err(refused)?,
            }
        };
        outgoing.advance(written);
        sealed += length;
        left -= length;
    }
    Ok(sealed)
}

/// The keys have sealed as much as they may, which under TLS 1.3 does not happen: they are changed before.
fn refused(error: EncryptError) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

/// Slices from which records are cut.
struct Source<'a> {
    slices: &'a [IoSlice<'a>],
    /// So much of the first slice is taken.
    at: usize,
}

impl<'a> Source<'a> {
    /// The next bytes, of which there must be so many. They are copied only if they lie in several slices.
    fn take<'b>(&mut self, length: usize, joined: &'b mut Buffer) -> &'b [u8]
    where
        'a: 'b,
    {
        self.skip_taken();
        let piece = self.piece(length);
        if piece.len() == length {
            return piece;
        }
        joined.release();
        let space = joined.space();
        space[..piece.len()].copy_from_slice(piece);
        let mut filled = piece.len();
        while filled < length {
            self.skip_taken();
            let piece = self.piece(length - filled);
            space[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        }
        &space[..length]
    }

    fn skip_taken(&mut self) {
        while let Some((first, rest)) = self.slices.split_first()
            && self.at == first.len()
        {
            self.slices = rest;
            self.at = 0;
        }
    }

    /// Takes as many as there are in the first slice, up to a length.
    fn piece(&mut self, length: usize) -> &'a [u8] {
        let Some(first) = self.slices.first() else { return &[] };
        let left = &first[self.at..];
        let piece = &left[..left.len().min(length)];
        self.at += piece.len();
        piece
    }
}

#[cfg(test)]
mod tests;
