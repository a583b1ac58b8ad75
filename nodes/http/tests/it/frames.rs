//! An HTTP/2 connection on which frames are sent as they are (RFC 9113 section 4, RFC 7541 section 6.2.2).

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::kit::within;

pub(crate) struct Frames<S>(S);

/// What came of stream 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer; 0 for a status that these tests don't know.
    Status(u16),
    /// The stream, or the connection, was broken off.
    BrokenOff,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    pub(crate) async fn open(stream: S) -> Self {
        let mut frames = Self(stream);
        frames.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        frames.frame(SETTINGS, 0, 0, &[]).await;
        frames
    }

    /// A head or trailers on stream 1.
    pub(crate) async fn headers(&mut self, fields: &[(&str, &[u8])], end: bool) {
        let mut block = Vec::new();
        for (name, value) in fields {
            // A literal that is not to be indexed, with a literal name.
            block.push(0);
            for text in [name.as_bytes(), value] {
                assert!(text.len() < 127, "longer ones need a second byte of length");
                block.push(u8::try_from(text.len()).unwrap());
                block.extend_from_slice(text);
            }
        }
        self.frame(HEADERS, END_HEADERS | if end { END_STREAM } else { 0 }, 1, &block).await;
    }

    pub(crate) async fn data(&mut self, bytes: &[u8], end: bool) {
        self.frame(DATA, if end { END_STREAM } else { 0 }, 1, bytes).await;
    }

    pub(crate) async fn outcome(&mut self) -> Outcome {
        loop {
            let mut head = [0; 9];
            if within(self.0.read_exact(&mut head)).await.is_err() {
                return Outcome::BrokenOff;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            within(self.0.read_exact(&mut payload)).await.unwrap();
            match head[3] {
                HEADERS => {
                    return Outcome::Status(match &payload[..] {
                        [0x88, ..] => 200,
                        [0x8C, ..] => 400,
                        [0x48, 0x82, 0x6C, 0x01, ..] => 501,
                        _ => 0,
                    });
                }
                RESET | GO_AWAY => return Outcome::BrokenOff,
                _ => {}
            }
        }
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.write(&frame).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        // It may have been broken off already, which its outcome tells.
        let _ = self.0.write_all(bytes).await;
        let _ = self.0.flush().await;
    }
}
