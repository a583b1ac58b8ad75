//! The relay between real sockets: raw clients and members on loopback, a seed whose answers the test dictates.

mod heads;
mod members;
mod owned;
mod peer;
mod seed;
mod streaming;
mod tunnels;

use std::net::TcpListener;

use protoplex_http::upstream::Settings;
use protoplex_http::{AccessLog, Fronts, Limits, Listener, tls};
use protoplex_runtime::drain::{Drain, Trigger};
use protoplex_wire::follow::Follower;
use protoplex_wire::identity::Identity;
use tempfile::TempDir;
use tokio::task::LocalSet;
use tokio::time::timeout;

use self::peer::{Member, Peer};
use self::seed::Script;
use super::*;

/// No test takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a test as a child runs: on one thread, in a `LocalSet`.
fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(DEADLINE, test()).await.expect("the test hangs") });
}

/// A relay behind the real server on a free port. Ends when it is dropped.
struct Proxy {
    address: SocketAddr,
    /// The same behind TLS.
    https: SocketAddr,
    relay: Rc<Relay>,
    seed: Script,
    _trigger: Trigger,
    _data: TempDir,
}

impl Proxy {
    /// One handler `/{*rest}` to these members.
    async fn start(placement: proto::Placement, key: &str, members: &[&Member]) -> Self {
        Self::with(Settings::default(), placement, key, members).await
    }

    async fn with(upstream: Settings, placement: proto::Placement, key: &str, members: &[&Member]) -> Self {
        let proxy = Self::without_table(upstream).await;
        let members = members.iter().map(|member| proto::Member {
            id: format!("rooms/{}", member.address),
            pool: "rooms".to_owned(),
            address: member.address.to_string(),
            zone: String::new(),
            instance: String::new(),
        });
        let handler = proto::Handler {
            name: "test".to_owned(),
            host: "*".to_owned(),
            path: "/at/{*rest}".to_owned(),
            key: key.to_owned(),
            pool: "rooms".to_owned(),
            placement: placement.into(),
            ..Default::default()
        };
        let pools = vec![proto::Pool { name: "rooms".to_owned(), members: members.collect() }];
        let unusable = proxy.relay.adopt(&proto::Table { version: 1, handlers: vec![handler], pools });
        assert!(unusable.is_empty());
        proxy
    }

    async fn without_table(upstream: Settings) -> Self {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&data.path().join("cluster")).unwrap();
        let script = Script::default();
        let seed = seed::start(&identity, script.clone()).await;
        let who = Follower {
            node: "proxy-1".to_owned(),
            kind: "proxy".to_owned(),
            zone: String::new(),
            membership: None,
        };
        let link = Link::open(&identity, &seed.to_string(), who).unwrap();

        let local = tls::ensure_local(&data.path().join("tls"), &[]).unwrap();
        let certificate = tls::load(&local.certificate, &local.key).unwrap();
        let (address, plain) = listener(None);
        let (https, encrypted) = listener(Some(certificate));
        let (trigger, drain) = Drain::new();
        let relay = Rc::new(Relay::new(link, Pool::new(upstream), Duration::from_secs(60)));
        let serving = protoplex_http::serve(
            vec![plain, encrypted],
            Limits::default(),
            AccessLog::off(),
            drain,
            Rc::clone(&relay),
        );
        tokio::task::spawn_local(async { serving.await.unwrap() });
        Self { address, https, relay, seed: script, _trigger: trigger, _data: data }
    }

    /// Sends a request over TLS with curl, in this version of HTTP; returns head and body of the answer.
    async fn curl(&self, version: &str, target: &str, fields: &[String]) -> (String, String) {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["--silent", "--insecure", "--include", "--max-time", "15", "--noproxy", "*", version]);
        curl.args(["--path-as-is", "--request-target", target]);
        curl.args(fields.iter().flat_map(|field| ["--header", field]));
        let output = curl.arg(format!("https://{}/", self.https)).kill_on_drop(true).output().await.unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.to_owned(), body.to_owned())
    }

    async fn connect(&self) -> Peer {
        Peer::connect(self.address).await
    }

    /// Sends a request whole, on a connection of its own, and returns head and body of the answer.
    async fn ask(&self, request: &str) -> (String, String) {
        let mut client = self.connect().await;
        client.say(request).await;
        client.answer().await
    }

    /// GET of a path below `/at/`.
    async fn get(&self, path: &str) -> (String, String) {
        self.ask(&format!("GET /at/{path} HTTP/1.1\r\nHost: a.example\r\n\r\n")).await
    }
}

fn listener(tls: Option<tls::TlsConfig>) -> (SocketAddr, Listener) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    (socket.local_addr().unwrap(), Listener { socket, tls, fronts: Fronts::default() })
}

fn assert_problem(answer: &(String, String), status: &str, kind: &str) {
    let (head, body) = answer;
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    assert!(body.contains(&format!("urn:protoplex:problem:{kind}\"")), "{body}");
    let retry = peer::fields(head, "retry-after");
    assert_eq!(retry.is_empty(), status != "503", "{head}");
}
