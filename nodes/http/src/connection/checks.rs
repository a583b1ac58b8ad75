//! What must hold of the beginning of every connection that may bring a PROXY header, whatever its bytes are and however
//! they come: for the fuzz target (`nodes/http/fuzz`) and for the tests. It panics where it does not hold.

use std::net::SocketAddr;
use std::time::Duration;

use protoplex_runtime::drain::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;

use super::*;

/// The longest line of version 1 (proxy-protocol.txt, section 2.1).
const LONGEST_LINE: usize = 107;
const SILENCE: Duration = Duration::from_secs(60);

/// How a connection may go on.
#[derive(Debug, PartialEq, Eq)]
pub struct Opening {
    /// Whom its header names.
    pub client: Option<SocketAddr>,
    /// How many bytes its header has; 0 where it has none, and need not.
    pub header: usize,
}

/// Sends the bytes in pieces of these lengths and in one last piece, then the end, to whoever reads a PROXY header. The
/// verdict must be that of the bytes alone, no byte behind a header may be read with it, and none that is no header's be
/// lost.
pub async fn opening(bytes: &[u8], pieces: &[usize], required: bool) -> Option<Opening> {
    let (tcp, sending) = pair(bytes, pieces).await;
    let announces = if required { Announces::Always } else { Announces::Perhaps };
    let (_trigger, drain) = Drain::new();
    let reading = read_proxy_header(&tcp, announces, SILENCE, SILENCE, &drain);
    let (announced, _peer) = tokio::join!(reading, sending);
    let verdict = proxy_header::judge(bytes);
    let Ok(announced) = announced else {
        assert!(!matches!(verdict, Verdict::Whole { .. }), "a sound header was refused");
        let may_go_on =
            matches!(verdict, Verdict::Absent | Verdict::Undecided) && !required && !bytes.is_empty();
        assert!(!may_go_on, "what is no header was refused");
        return None;
    };
    let mut behind = announced.leading.to_vec();
    let mut stream = tcp;
    stream.read_to_end(&mut behind).await.expect("the sender ends in good order");
    let header = bytes.len() - behind.len();
    assert_eq!(behind, bytes[header..], "bytes are lost, or come twice");
    match verdict {
        Verdict::Whole { length, client } => {
            assert_eq!((header, announced.client), (length, client));
            assert!(length <= LONGEST_LINE || !bytes.starts_with(b"PROXY"), "a line of {length} bytes");
        }
        Verdict::Absent | Verdict::Undecided => {
            assert!(header == 0 && !required && announced.client.is_none())
        }
        Verdict::Partial | Verdict::Refused(_) => panic!("{verdict:?} goes on"),
    }
    Some(Opening { client: announced.client, header })
}

/// Our end of a connection, and what sends the bytes at the other one and closes that for sending.
async fn pair<'a>(bytes: &'a [u8], pieces: &'a [usize]) -> (Tcp, impl Future<Output = TcpStream> + 'a) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (mut peer, (stream, _)) = (peer.expect("a connection"), accepted.expect("a connection"));
    let sending = async move {
        peer.set_nodelay(true).expect("an option of every socket");
        let mut rest = bytes;
        for length in pieces {
            let (piece, behind) = rest.split_at(*length.min(&rest.len()));
            rest = behind;
            // Who refuses leaves before the last piece.
            let _ = peer.write_all(piece).await;
            yield_now().await;
        }
        let _ = peer.write_all(rest).await;
        let _ = peer.shutdown().await;
        peer
    };
    (Tcp::new(stream), sending)
}
