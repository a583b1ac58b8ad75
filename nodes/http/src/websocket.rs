//! Where WebSocket frames end in a stream of bytes (RFC 6455 section 5.2): headers are read, payloads are counted.

/// One direction of a WebSocket, followed from its first byte. No I/O, nothing is kept of a payload, and a piece costs no
/// more than the headers in it.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// What has come of a header that isn't whole, up to the payload's length.
    header: [u8; MAX_HEADER_BYTES],
    header_bytes: u8,
    /// Of the frame, its masking key included.
    left: u64,
    opcode: u8,
    /// The last frame of data was not its message's last.
    in_message: bool,
    closed: bool,
}

/// Where something of our own may be put between what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boundary {
    /// Behind any frame: a control frame may stand there (RFC 6455 section 5.4).
    Frame,
    /// Behind the last frame of a message, so that it is whole.
    Message,
}

/// Two bytes and the longest form of a length.
const MAX_HEADER_BYTES: usize = 10;
const MASK_BYTES: u64 = 4;
const CLOSE: u8 = 0x8;

/// A server's Close with the code 1001, "going away" (RFC 6455 section 7.4.1).
pub(crate) const GOING_AWAY: [u8; 4] = [0x80 | CLOSE, 2, GOING_AWAY_CODE[0], GOING_AWAY_CODE[1]];
const GOING_AWAY_CODE: [u8; 2] = 1001_u16.to_be_bytes();

/// The same from a client, which masks what it sends.
pub(crate) fn masked_going_away(mask: [u8; 4]) -> [u8; 8] {
    let [first, second, third, fourth] = mask;
    let code = [GOING_AWAY_CODE[0] ^ first, GOING_AWAY_CODE[1] ^ second];
    [0x80 | CLOSE, 0x80 | 2, first, second, third, fourth, code[0], code[1]]
}

impl Frames {
    /// Whether a Close has passed as a whole: nothing may follow it.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether what has passed ends there. A connection begins at a boundary.
    pub(crate) fn is_at(&self, boundary: Boundary) -> bool {
        self.header_bytes == 0 && self.left == 0 && (boundary == Boundary::Frame || !self.in_message)
    }

    /// All of this passes.
    pub(crate) fn pass(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&bytes[at..]);
        }
    }

    /// As much of this passes as there is up to the first boundary; says how much that is. If there is none all of it
    /// passes.
    pub(crate) fn pass_until(&mut self, boundary: Boundary, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while !self.is_at(boundary) {
            if at == bytes.len() {
                return None;
            }
            at += self.step(&bytes[at..]);
        }
        Some(at)
    }

    /// The next byte of a header, or what there is of a payload; says how much. There must be something.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.left > 0 {
            let skipped = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
            self.left -= skipped as u64;
            self.end_frame();
            return skipped;
        }
        self.header[usize::from(self.header_bytes)] = bytes[0];
        self.header_bytes += 1;
        if let Some(length) = self.payload_bytes() {
            let masked = self.header[1] & 0x80 != 0;
            // Such a length is broken; that is for the receiver to say.
            self.left = length.saturating_add(if masked { MASK_BYTES } else { 0 });
            self.opcode = self.header[0] & 0xf;
            if self.opcode < CLOSE {
                self.in_message = self.header[0] & 0x80 == 0;
            }
            self.header_bytes = 0;
            self.end_frame();
        }
        1
    }

    /// As the header says, once it is whole.
    fn payload_bytes(&self) -> Option<u64> {
        let [_, short, rest @ ..] = &self.header;
        match (self.header_bytes, short & 0x7f) {
            (2, length @ ..126) => Some(length.into()),
            (4, 126) => Some(u16::from_be_bytes([rest[0], rest[1]]).into()),
            (10, 127) => Some(u64::from_be_bytes(*rest)),
            _ => None,
        }
    }

    fn end_frame(&mut self) {
        self.closed |= self.left == 0 && self.opcode == CLOSE;
    }
}

#[cfg(test)]
mod tests;
