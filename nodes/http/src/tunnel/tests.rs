//! What an idle tunnel holds, and where a Close is put.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::*;
use crate::buffer;
use crate::drain::Draining;
use crate::exchange::{Client, Scheme};
use crate::head::RequestHead;
use crate::limits::Limits;
use crate::socket::Stream;
use crate::surroundings::Surroundings;
use crate::tcp::Tcp;

/// Our end of a connection, and the peer's.
async fn pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let ours = Stream::Plain(Tcp::new(listener.accept().await.unwrap().0));
    (Socket::new(ours, Duration::from_secs(60)), peer)
}

async fn read(peer: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    peer.read_exact(&mut bytes).await.unwrap();
    bytes
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_tunnel_on_which_nothing_moves_holds_no_buffer() {
    run(async {
        let ((client, mut outside), (mut upstream, mut backend)) = (pair().await, pair().await);
        // What came right behind the 101 is one buffer at first.
        upstream.unread(vec![b'x'; 16 * 1024].into());
        let (_trigger, drain) = protoplex_runtime::drain::Drain::new();
        let drain = Draining::new(&Surroundings::from(drain), &Limits::default());
        let exchange =
            Exchange::of(&Client::new("192.0.2.1:1".parse().unwrap(), Scheme::Http), RequestHead::unknown());
        let relay = Relay::new(client, upstream, true, Duration::from_secs(60)).run(&drain, &exchange);
        assert!(size_of_val(&relay) <= 560, "{}", size_of_val(&relay));
        let talk = async {
            assert_eq!(read(&mut outside, 16 * 1024).await, vec![b'x'; 16 * 1024]);
            for _ in 0..3 {
                outside.write_all(&[0x81, 0x80, 1, 2, 3, 4]).await.unwrap();
                backend.write_all(&[0x81, 1, b'a']).await.unwrap();
                assert_eq!(read(&mut backend, 6).await, [0x81, 0x80, 1, 2, 3, 4]);
                assert_eq!(read(&mut outside, 3).await, [0x81, 1, b'a']);
            }
            assert_eq!(buffer::held(), 0);
        };
        tokio::select! {
            outcome = relay => panic!("{outcome:?}"),
            () = talk => {}
        }
    });
}
