//! A whole exchange: a client's bytes and an upstream's, cut at any place, through a relay over loopback sockets, on a
//! clock that runs ahead whenever nobody has anything to do. It must come to an end, and what goes out on either side
//! must be sound: no byte of a client's can become a request of its own that the relay has not understood as one.

#![no_main]

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use http::StatusCode;
use libfuzzer_sys::fuzz_target;
use protoplex_http::upstream::{Pool, Settings};
use protoplex_http::{
    AccessLog, Answer, Body, Exchange, Fronts, Limits, Listener, Problem, Service, forwarded, serve, upgrade,
};
use protoplex_runtime::drain::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local, yield_now};

/// What one side does.
#[derive(Clone, Debug)]
enum Act {
    Send(Vec<u8>),
    Yield,
    Wait,
    End,
    Reset,
}

/// A side's acts: a byte that says what, then perhaps a length and so many bytes.
fn acts(mut script: &[u8]) -> Vec<Act> {
    let mut acts = Vec::new();
    while let Some((kind, rest)) = script.split_first() {
        script = rest;
        acts.push(match kind {
            0 => Act::Yield,
            1 => Act::Wait,
            2 => Act::End,
            3 => Act::Reset,
            length => {
                let (bytes, rest) = script.split_at(usize::from(*length).min(script.len()));
                script = rest;
                Act::Send(bytes.to_vec())
            }
        });
    }
    acts
}

struct Relay {
    pool: Rc<Pool>,
    origin: SocketAddr,
    asked: Rc<Cell<usize>>,
}

impl Service for Relay {
    async fn answer(&self, exchange: &Rc<Exchange>, body: Body) -> Answer {
        self.asked.set(self.asked.get() + 1);
        let head = forwarded::request_head(exchange);
        match self.pool.ask(self.origin, &head, body, Some(exchange)).await {
            Ok(mut answer) => {
                forwarded::answer_head(&mut answer.head);
                match answer.head.status() {
                    StatusCode::SWITCHING_PROTOCOLS if exchange.head.asks_upgrade() => {
                        upgrade::relay_answer(exchange, answer, Duration::from_secs(60))
                    }
                    StatusCode::SWITCHING_PROTOCOLS => bad_gateway("unasked".into()),
                    _ => answer,
                }
            }
            Err(error) => bad_gateway(error.to_string()),
        }
    }
}

fn bad_gateway(detail: String) -> Answer {
    Problem::new(StatusCode::BAD_GATEWAY, "upstream", detail).into()
}

/// Plays a side to its end, and notes what it reads as it comes.
async fn play(mut stream: TcpStream, acts: &[Act], read: &RefCell<Vec<u8>>) {
    for act in acts {
        match act {
            Act::Send(bytes) => {
                if stream.write_all(bytes).await.is_err() {
                    break;
                }
            }
            Act::Yield => yield_now().await,
            Act::Wait => tokio::time::sleep(Duration::from_millis(500)).await,
            Act::End => {
                let _ = stream.shutdown().await;
            }
            Act::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
        }
        let mut piece = [0; 4096];
        if let Ok(length) = stream.try_read(&mut piece) {
            read.borrow_mut().extend_from_slice(&piece[..length]);
        }
    }
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut piece).await {
        read.borrow_mut().extend_from_slice(&piece[..length]);
    }
}

thread_local! {
    static RUNS: Cell<u32> = const { Cell::new(0) };
}

fuzz_target!(|input: &[u8]| {
    let Some((split, rest)) = input.split_first() else { return };
    let (client, upstream) = rest.split_at(usize::from(*split).min(rest.len()));
    let (client, upstream) = (acts(client), acts(upstream));
    // A fresh address each time, so that ports are not used up.
    let run = RUNS.replace(RUNS.get().wrapping_add(1));
    let [_, high, middle, low] = run.to_be_bytes();
    let ip = Ipv4Addr::new(127, high, middle, low.max(1));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let exchange = exchange(ip, client, upstream);
        tokio::time::timeout(Duration::from_secs(3600), exchange).await.expect("an end within an hour");
    });
});

async fn exchange(ip: Ipv4Addr, client: Vec<Act>, upstream: Vec<Act>) {
    let listener = TcpListener::bind((ip, 0)).await.expect("a port");
    let origin = listener.local_addr().expect("an address");
    let seen: Rc<RefCell<Vec<Rc<RefCell<Vec<u8>>>>>> = Rc::default();
    let notes = Rc::clone(&seen);
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (upstream, read) = (upstream.clone(), Rc::default());
            notes.borrow_mut().push(Rc::clone(&read));
            spawn_local(async move { play(stream, &upstream, &read).await });
        }
    });
    let socket = std::net::TcpListener::bind((ip, 0)).expect("a port");
    let relay = socket.local_addr().expect("an address");
    let (trigger, drain) = Drain::new();
    let asked = Rc::new(Cell::new(0));
    let handler = Relay { pool: Pool::new(Settings::default()), origin, asked: Rc::clone(&asked) };
    let serving = spawn_local(async move {
        let listeners = vec![Listener { socket, tls: None, fronts: Fronts::default() }];
        serve(listeners, Limits::default(), AccessLog::off(), drain, Rc::new(handler)).await
    });
    let stream = TcpStream::connect(relay).await.expect("the relay listens");
    let told = RefCell::default();
    play(stream, &client, &told).await;
    let told = told.into_inner();
    trigger.pull();
    serving.await.expect("no panic").expect("a socket that can be used");
    if !told.starts_with(b"HTTP/1.") {
        assert!(told.is_empty() || client_speaks_http_2(&client), "{}", told.escape_ascii());
    }
    let heads: usize = seen.borrow().iter().map(|bytes| count_heads(&bytes.borrow())).sum();
    assert!(heads <= 2 * asked.get(), "{heads} requests of {}", asked.get());
}

fn client_speaks_http_2(client: &[Act]) -> bool {
    let sent: Vec<u8> = client
        .iter()
        .filter_map(|act| if let Act::Send(bytes) = act { Some(&bytes[..]) } else { None })
        .flatten()
        .copied()
        .collect();
    sent.starts_with(b"PRI * HTTP/2.0")
}

/// Follows an upstream's connection request by request, by another parser; what comes first on it must be a sound head.
fn count_heads(mut bytes: &[u8]) -> usize {
    let mut heads = 0;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 256];
        let mut head = httparse::Request::new(&mut headers);
        let length = match head.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return heads,
            Err(error) => panic!("{error}: {}", bytes.escape_ascii()),
        };
        heads += 1;
        let value = |name: &str| {
            let mut values = head.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
            let value = values.next().map(|field| field.value.to_vec());
            assert!(values.next().is_none(), "{name} twice: {}", bytes.escape_ascii());
            value
        };
        let (fixed, chunked) = (value("content-length"), value("transfer-encoding"));
        assert!(fixed.is_none() || chunked.is_none(), "{}", bytes.escape_ascii());
        // What follows an upgrade is another protocol's.
        if value("upgrade").is_some() {
            return heads;
        }
        bytes = &bytes[length..];
        if let Some(fixed) = fixed {
            let fixed: usize =
                String::from_utf8(fixed).ok().and_then(|text| text.parse().ok()).expect("a length");
            if bytes.len() < fixed {
                return heads;
            }
            bytes = &bytes[fixed..];
        } else if chunked.is_some() {
            loop {
                let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(bytes) else {
                    return heads;
                };
                bytes = &bytes[line..];
                if size == 0 {
                    break;
                }
                let Some(rest) = bytes.get(size as usize + 2..) else { return heads };
                bytes = rest;
            }
            let mut trailers = [httparse::EMPTY_HEADER; 256];
            match httparse::parse_headers(bytes, &mut trailers) {
                Ok(httparse::Status::Complete((length, _))) => bytes = &bytes[length..],
                _ => return heads,
            }
        }
    }
}
