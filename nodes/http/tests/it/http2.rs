//! HTTP/2: the same requests for handlers, and clients that only make work.

use std::cell::Cell;
use std::future::{Future, pending};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use protoplex_http::{Limits, Response};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::kit::{OnDrop, Server, curl, echo, limits, run, start, start_relay, text, until, within};

#[derive(Clone)]
pub(crate) struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

pub(crate) type Client = SendRequest<Empty<Bytes>>;

pub(crate) async fn connect(server: &Server) -> (Client, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (client, connection) = handshake(Local, TokioIo::new(stream)).await.unwrap();
    (client, tokio::task::spawn_local(connection))
}

pub(crate) fn get(uri: &str) -> http::Request<Empty<Bytes>> {
    http::Request::get(uri).body(Empty::new()).unwrap()
}

async fn body(response: http::Response<hyper::body::Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

fn show_target()
-> impl Fn(protoplex_http::Request, Rc<protoplex_http::Exchange>) -> std::future::Ready<Response> {
    |request, _| {
        let hosts: Vec<_> =
            request.headers().get_all("host").iter().map(|host| host.to_str().unwrap()).collect();
        std::future::ready(text(format!("{} {}", hosts.join(","), request.uri())))
    }
}

#[test]
fn authority_is_host_for_handlers() {
    run(async {
        let server = start(limits(), show_target());
        let (mut client, _connection) = connect(&server).await;
        let response = client.send_request(get("http://a.example:81/x?y")).await.unwrap();
        assert_eq!(body(response).await, "a.example:81 /x?y");
        let mut same = get("http://a.example/");
        same.headers_mut().insert("host", "A.example".parse().unwrap());
        assert_eq!(body(client.send_request(same).await.unwrap()).await, "a.example /");
        let mut other = get("http://a.example/");
        other.headers_mut().insert("host", "b.example".parse().unwrap());
        let response = client.send_request(other).await.unwrap();
        assert_eq!(response.status(), 400);
        assert!(body(response).await.contains("bad-host"));
    });
}

#[test]
fn cookies_in_several_fields_are_one_field_for_a_backend() {
    run(async {
        let origin = start(limits(), |request, _| async move {
            let fields = request.headers().get_all("cookie").iter().map(|field| field.to_str().unwrap());
            text(fields.collect::<Vec<_>>().join("\n"))
        });
        let relay = start_relay(origin.address);
        let (mut client, _connection) = connect(&relay).await;
        for (crumbs, expected) in
            [(&["a=1", "b=2; c=3", "d=4"][..], "a=1; b=2; c=3; d=4"), (&["a=1"], "a=1"), (&[], "")]
        {
            let mut request = get("http://a/");
            for crumb in crumbs {
                request.headers_mut().append("cookie", crumb.parse().unwrap());
            }
            assert_eq!(body(client.send_request(request).await.unwrap()).await, expected);
        }
    });
}

#[test]
fn a_get_with_a_body_of_unknown_length_has_it_at_the_backend_too() {
    run(async {
        let origin = start(limits(), |request, _| echo(request));
        let relay = start_relay(origin.address);
        let url = format!("http://{}/", relay.address);
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let chunked = ["-X", "GET", "-H", "Transfer-Encoding: chunked", "-H", "Content-Length:"];
            let body = ["-d", "query", version, &url];
            let (fine, text) = curl(&[&chunked[..], &body].concat()).await;
            assert!(fine && text == "query", "{version}: {text}");
        }
    });
}

#[test]
fn curl_speaks_http_2_by_prior_knowledge() {
    run(async {
        let server = start(limits(), |request, _| echo(request));
        let url = format!("http://{}/", server.address);
        let (fine, text) =
            curl(&["--http2-prior-knowledge", "-d", "hello", "-w", " %{http_version}", &url]).await;
        assert!(fine && text == "hello 2", "{text}");
    });
}

#[test]
fn a_413_before_the_body_was_read_is_seen_over_http_2() {
    run(async {
        let server = start(limits(), |_, _| async {
            let mut response = text("too large");
            *response.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
            response
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(5 << 20).unwrap();
        let url = format!("http://{}/", server.address);
        let path = file.path().to_str().unwrap();
        let (fine, text) = curl(&["--http2-prior-knowledge", "-T", path, "-w", " %{http_code}", &url]).await;
        assert!(fine && text == "too large 413", "{text}");
    });
}

#[test]
fn a_stream_that_is_reset_takes_its_request_along() {
    run(async {
        let (begun, dropped) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (begin, gone) = (Rc::clone(&begun), Rc::clone(&dropped));
        let server = start(limits(), move |_, _| {
            begin.set(begin.get() + 1);
            let guard = OnDrop(Rc::clone(&gone));
            async move {
                let _guard = guard;
                pending().await
            }
        });
        let (mut client, connection) = connect(&server).await;
        let request = client.send_request(get("http://a/"));
        until(|| begun.get() == 1).await;
        drop(request);
        until(|| dropped.get() == 1).await;
        let request = client.send_request(get("http://a/"));
        until(|| begun.get() == 2).await;
        connection.abort();
        drop((client, request));
        until(|| dropped.get() == 2).await;
    });
}

#[test]
fn a_client_that_keeps_resetting_streams_is_sent_away() {
    run(async {
        let mut limits = limits();
        limits.http2.max_resets = 10;
        let begun = Rc::new(Cell::new(0));
        let begin = Rc::clone(&begun);
        let server = start(limits, move |_, _| {
            begin.set(begin.get() + 1);
            pending()
        });
        let (mut client, connection) = connect(&server).await;
        let mut resets = 0;
        while client.ready().await.is_ok() && resets < 1000 {
            let request = client.send_request(get("http://a/"));
            resets += 1;
            until(|| begun.get() >= resets || client.is_closed()).await;
            drop(request);
        }
        let _ = within(connection).await.unwrap();
        assert!((10..30).contains(&resets), "{resets}");
    });
}

#[test]
fn an_idle_connection_is_closed() {
    run(async {
        let limits = Limits { idle_timeout: Duration::from_millis(150), ..limits() };
        let server = start(limits, |_, _| async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            text("slow but not idle")
        });
        let (mut client, connection) = connect(&server).await;
        let response = client.send_request(get("http://a/")).await.unwrap();
        assert_eq!(body(response).await, "slow but not idle");
        within(connection).await.unwrap().unwrap();
    });
}

#[test]
fn a_header_list_beyond_the_limit_is_refused() {
    run(async {
        let server = start(limits(), |_, _| async { text("seen") });
        let long = format!("X: {}", "x".repeat(40_000));
        let url = format!("http://{}/", server.address);
        let (_, text) = curl(&["--http2-prior-knowledge", "-H", &long, "-w", "%{http_code}", &url]).await;
        assert!(!text.contains("seen"), "{text}");
    });
}
