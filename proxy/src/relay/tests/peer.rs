//! One end of a connection that speaks HTTP/1.1 to the letter of the test, and a server made of such ends.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

pub(super) struct Peer {
    pub(super) stream: BufReader<TcpStream>,
}

/// The values of a field, in their order.
pub(super) fn fields(head: &str, name: &str) -> Vec<String> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().to_owned())
        .collect()
}

impl Peer {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        Self { stream: BufReader::new(TcpStream::connect(address).await.unwrap()) }
    }

    pub(super) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// A chunk of a chunked body; an empty one ends it.
    pub(super) async fn say_chunk(&mut self, data: &str) {
        self.say(format!("{:x}\r\n{data}\r\n", data.len())).await;
    }

    pub(super) async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        line
    }

    /// A head up to its empty line; empty where the other side has ended the connection.
    pub(super) async fn head(&mut self) -> String {
        let mut head = String::new();
        loop {
            let line = self.line().await;
            head.push_str(&line);
            if line == "\r\n" || line.is_empty() {
                return head;
            }
        }
    }

    pub(super) async fn exactly(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// The next chunk of a chunked body; empty at its end, whose trailers are left unread.
    pub(super) async fn chunk(&mut self) -> String {
        let size = usize::from_str_radix(self.line().await.trim(), 16).unwrap();
        let data = self.exactly(size).await;
        if size > 0 {
            assert_eq!(self.line().await, "\r\n");
        }
        data
    }

    /// The body that follows a head.
    pub(super) async fn body(&mut self, head: &str) -> String {
        if let [length] = &fields(head, "content-length")[..] {
            return self.exactly(length.parse().unwrap()).await;
        }
        if fields(head, "transfer-encoding").is_empty() {
            return String::new();
        }
        let mut body = String::new();
        loop {
            let chunk = self.chunk().await;
            if chunk.is_empty() {
                self.head().await;
                return body;
            }
            body.push_str(&chunk);
        }
    }

    /// The head and the body of an answer.
    pub(super) async fn answer(&mut self) -> (String, String) {
        let head = self.head().await;
        let body = self.body(&head).await;
        (head, body)
    }

    /// Answers 200 with this body.
    pub(super) async fn ok(&mut self, body: &str) {
        self.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    }

    /// What still comes until the other side ends the connection, in good order or not.
    pub(super) async fn until_closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _broken_off = self.stream.read_to_end(&mut rest).await;
        rest
    }
}

/// A server of a pool. Its connections are counted.
pub(super) struct Member {
    pub(super) address: SocketAddr,
    pub(super) connections: Rc<Cell<usize>>,
}

impl Member {
    /// Each connection is handed to `talk`.
    pub(super) async fn start(talk: impl AsyncFn(Peer) + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Rc::new(Cell::new(0));
        let (counted, talk) = (Rc::clone(&connections), Rc::new(talk));
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.set(counted.get() + 1);
                let talk = Rc::clone(&talk);
                tokio::task::spawn_local(async move { talk(Peer { stream: BufReader::new(stream) }).await });
            }
        });
        Self { address, connections }
    }

    /// Answers each request with `reply` of its head and body.
    pub(super) async fn replying(reply: impl Fn(&str, &str) -> String + 'static) -> Self {
        let reply = Rc::new(reply);
        Self::start(async move |mut peer: Peer| {
            loop {
                let head = peer.head().await;
                if head.is_empty() {
                    return;
                }
                let body = peer.body(&head).await;
                peer.ok(&reply(&head, &body)).await;
            }
        })
        .await
    }

    /// Answers each request with its own head and body.
    pub(super) async fn echo() -> Self {
        Self::replying(|head, body| format!("{head}{body}")).await
    }

    /// An address where nobody listens.
    pub(super) fn absent() -> Self {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { address, connections: Rc::default() }
    }
}
