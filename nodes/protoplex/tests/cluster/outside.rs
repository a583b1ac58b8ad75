//! Members that register by HTTP, with curl for a client: the link message by message, and what is refused of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use protoplex_testkit::cluster::{Cluster, signal};
use protoplex_testkit::curl::{Answer, curl};
use protoplex_testkit::ports::Port;
use protoplex_testkit::until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::keyed_requests::{Killed, add_rooms};
use crate::{get, start};

/// By what name seeds are known, whatever their address.
const SEED: &str = "https://service.protoplex.internal";

/// How a seed is asked: curl's arguments for it, credentials among them.
#[derive(Clone)]
pub(crate) struct Seed {
    arguments: Vec<String>,
}

impl Seed {
    /// As a server called "m".
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let seed = address(cluster);
        Self::at(&seed, &enrolled(|arguments| cluster.json(arguments), &seed, cluster.folder(), "m"))
    }

    pub(crate) fn at(address: &str, credentials: &Path) -> Self {
        let mut seed = Self { arguments: vec!["--connect-to".to_owned(), format!("::{address}")] };
        for (flag, file) in [("--cacert", "ca.pem"), ("--cert", "cert.pem"), ("--key", "key.pem")] {
            seed.arguments.extend([flag.to_owned(), credentials.join(file).display().to_string()]);
        }
        seed
    }

    pub(crate) fn ask(&self, path: &str, more: &[&str]) -> Answer {
        let url = format!("{SEED}{path}");
        let own = self.arguments.iter().map(String::as_str);
        curl(own.chain(more.iter().copied()).chain([&*url]).collect::<Vec<_>>())
    }

    /// POST of this body.
    fn post(&self, path: &str, body: &str) -> Answer {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(body.as_bytes()).unwrap();
        self.ask(path, &["--data-binary", &format!("@{}", file.path().display())])
    }

    /// Who owns a key, and at which epoch.
    pub(crate) fn owner(&self, key: &str) -> Option<(String, u64)> {
        let answer = self.ask(&format!("/v1/keys/rooms/{key}"), &[]);
        // Nobody, or nobody can say yet.
        if answer.status == 404 || answer.status == 503 {
            return None;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        let owner = answer.json();
        Some((owner["member"].as_str().unwrap().to_owned(), owner["epoch"].as_u64().unwrap()))
    }
}

/// Credentials of a server of this name, for the pool `rooms`: `ca.pem`, `cert.pem`, `key.pem`.
pub(crate) fn enrolled(
    operator: impl Fn(&[&str]) -> Value,
    seed: &str,
    folder: &Path,
    name: &str,
) -> PathBuf {
    let token = operator(&["join-token", "create", "--kind", "backend", "--pool", "rooms"]);
    let credentials = folder.join(format!("credentials-{name}"));
    let enrolled = Command::new(env!("CARGO_BIN_EXE_protoplex"))
        .args(["--seed", seed, "enrol", "--node", name, "--token", token["token"].as_str().unwrap()])
        .arg(&credentials)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    credentials
}

/// Where the seed of a cluster listens.
pub(crate) fn address(cluster: &Cluster) -> String {
    let listens = cluster.node("seed-1")["listens"].clone();
    listens[0].as_str().unwrap().rsplit(' ').next().unwrap().to_owned()
}

/// A member whose link is curl's, and that renews its lease each second.
struct Member {
    stream: Child,
    lines: Receiver<Value>,
    seed: Seed,
    session: String,
    goes_on: Arc<AtomicBool>,
    renewing: Option<JoinHandle<()>>,
}

impl Member {
    fn register(seed: &Seed, registration: &Value, more: &[&str]) -> Self {
        let mut stream = Command::new("curl")
            .args(["-sS", "-N", "--noproxy", "*", "--max-time", "300"])
            .args(&seed.arguments)
            .args(more)
            .args(["-d", &registration.to_string(), &format!("{SEED}/v1/members")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, lines) = channel();
        let stdout = BufReader::new(stream.stdout.take().unwrap());
        thread::spawn(move || {
            let lines = stdout.lines().map_while(Result::ok);
            lines.map(|line| serde_json::from_str(&line).unwrap()).try_for_each(|line| say.send(line))
        });
        let first: Value = lines.recv_timeout(Duration::from_secs(30)).expect("a welcome");
        let session = first["welcome"]["session"].as_str().unwrap_or_else(|| panic!("{first}")).to_owned();
        let goes_on = Arc::new(AtomicBool::new(true));
        let renewing = {
            let (seed, session, goes_on) = (seed.clone(), session.clone(), Arc::clone(&goes_on));
            thread::spawn(move || {
                for sequence in 1.. {
                    if !goes_on.load(Ordering::Relaxed) {
                        return;
                    }
                    seed.post(
                        &format!("/v1/members/{session}"),
                        &json!({"renew": {"sequence": sequence}}).to_string(),
                    );
                    thread::park_timeout(Duration::from_secs(1));
                }
            })
        };
        Self { stream, lines, seed: seed.clone(), session, goes_on, renewing: Some(renewing) }
    }

    fn say(&self, lines: &[Value]) -> Answer {
        let body = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        self.seed.post(&format!("/v1/members/{}", self.session), &body)
    }

    /// The next line of this name.
    fn told(&self, name: &str) -> Value {
        loop {
            let line =
                self.lines.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| panic!("no {name}"));
            if let Some(told) = line.get(name) {
                return told.clone();
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        if let Some(renewing) = self.renewing.take() {
            renewing.thread().unpark();
            let _ = renewing.join();
        }
        // It may have ended by itself.
        let _ = self.stream.kill();
        let _ = self.stream.wait();
    }
}

fn registration(id: &str) -> Value {
    json!({"pool": "rooms", "id": id, "address": "127.0.0.1:9", "instance": id})
}

#[test]
fn a_member_by_http_is_told_what_it_owns_and_says_what_it_gives_up() {
    let cluster = start();
    let seed = Seed::of(&cluster);
    let member = Member::register(&seed, &registration("m"), &[]);
    assert_eq!(seed.owner("room:1"), None, "looking gives it to nobody");

    let located = seed.ask("/v1/keys/rooms/room:1", &["-X", "POST"]);
    assert_eq!(located.status, 200, "{located:?}");
    let epoch = located.json()["epoch"].as_u64().unwrap();
    assert_eq!(member.told("assigned"), json!({"key": "room:1", "epoch": epoch}));
    assert_eq!(
        located.json(),
        json!({"pool": "rooms", "key": "room:1", "member": "m", "address": "127.0.0.1:9", "epoch": epoch})
    );
    assert_eq!(seed.owner("room:1"), Some(("m".to_owned(), epoch)));
    assert!(member.told("renewed")["sequence"].as_u64().unwrap() >= 1);

    // What its owner has refused it gets at another epoch.
    let refuted = seed.post("/v1/keys/rooms/room:1", &json!({"refuted_epoch": epoch}).to_string()).json();
    let later = refuted["epoch"].as_u64().unwrap();
    assert!(later > epoch, "{refuted}");
    assert_eq!(member.told("assigned"), json!({"key": "room:1", "epoch": later}));

    // A word about an earlier epoch frees nothing; one about this does.
    let released = |epoch| json!({"released": {"keys": [{"key": "room:1", "epoch": epoch}]}});
    assert_eq!(member.say(&[released(epoch)]).status, 204);
    assert_eq!(seed.owner("room:1"), Some(("m".to_owned(), later)));
    assert_eq!(member.say(&[json!({"renew": {"sequence": 1000}}), released(later)]).status, 204);
    until("it is given up", || seed.owner("room:1").is_none().then_some(()));

    // A key may hold anything.
    let odd = seed.ask("/v1/keys/rooms/a%2Fb/c%20d", &["-X", "POST"]).json();
    assert_eq!((odd["key"].as_str(), &member.told("assigned")["key"]), (Some("a/b/c d"), &odd["key"]));

    // The link ends, the lease doesn't: the same instance has its keys again, and another gets none of the name.
    let epoch = odd["epoch"].as_u64().unwrap();
    let (old_session, mut back) = (member.session.clone(), registration("m"));
    drop(member);
    back["owned"] = json!([{"key": "a/b/c d", "epoch": epoch}, {"key": "never", "epoch": 1}]);
    let member = Member::register(&seed, &back, &["--http1.1"]);
    assert_eq!(seed.owner("a%2Fb/c%20d"), Some(("m".to_owned(), epoch)));
    assert_eq!(seed.post(&format!("/v1/members/{old_session}"), "{\"leave\":{}}").status, 404);

    assert_eq!(member.say(&[json!({"draining": {}})]).status, 204);
    let refused = until("it is given no more", || {
        let answer = seed.ask("/v1/keys/rooms/another", &["-X", "POST"]);
        (answer.status == 503).then_some(answer)
    });
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(member.say(&[json!({"leave": {}})]).status, 204);
    assert_eq!(member.told("closed"), json!({"reason": "the member has left", "leader": null}));
    until("its session is over", || {
        let answer = member.say(&[json!({"renew": {"sequence": 1}})]);
        (answer.status == 404).then_some(())
    });
}

#[test]
fn row_what_is_no_registration_is_refused_with_a_sentence_and_disturbs_nobody() {
    let cluster = start();
    let seed = Seed::of(&cluster);
    let member = Member::register(&seed, &registration("m"), &[]);
    let with = |field: &str, value: Value| {
        let mut registration = registration("m/other");
        registration["instance"] = "other".into();
        registration[field] = value;
        registration.to_string()
    };
    let long = "x".repeat(1025);
    let large = format!("{{\"pool\":\"{}\"}}", "x".repeat(9 << 20));
    let lines = format!("{{\"renew\":{{\"sequence\":{}}}}}", "1".repeat(3 << 20));
    let session = format!("/v1/members/{}", member.session);
    let key = format!("/v1/keys/rooms/{long}");
    let rows: &[(&str, &str, u16, &str)] = &[
        ("/v1/members", "{\"pool\":", 400, "EOF while parsing"),
        ("/v1/members", "pool=rooms&address=127.0.0.1:9", 400, "a JSON object is expected"),
        (
            "/v1/members",
            &with("adress", "127.0.0.1:9".into()),
            400,
            "unknown key \"adress\", did you mean \"address\"?",
        ),
        ("/v1/members", &with("capacity", "2".into()), 400, "invalid type: string \"2\", expected u32"),
        ("/v1/members", &with("capacity", 5000.into()), 400, "a member's capacity is at most 1000"),
        ("/v1/members", &with("capacity", 0.into()), 400, "a member's capacity is from 1 to 1000"),
        ("/v1/members", &with("owned", json!([{"key": "", "epoch": 1}])), 400, "a key that is empty"),
        ("/v1/members", &with("pool", "Rooms!".into()), 400, "pool \"Rooms!\": use 1 to 63 of a-z"),
        (
            "/v1/members",
            &with("address", "127.0.0.1".into()),
            400,
            "address \"127.0.0.1\": write the IP and port",
        ),
        (
            "/v1/members",
            &with("address", "localhost:9".into()),
            400,
            "address \"localhost:9\": write the IP and port",
        ),
        ("/v1/members", &with("address", "127.0.0.1:0".into()), 400, "at which proxies reach it"),
        ("/v1/members", &with("address", "[::]:9".into()), 400, "at which proxies reach it"),
        ("/v1/members", &with("id", "".into()), 400, "a member has an id"),
        ("/v1/members", &with("id", long.clone().into()), 400, "member id is longer than 255 bytes"),
        ("/v1/members", &with("instance", "".into()), 400, "name their instance"),
        ("/v1/members", &with("owned", json!([{"key": long, "epoch": 1}])), 400, "more keys, or longer ones"),
        (
            "/v1/members",
            &with("owned", json!([{"key": "a", "epoch": "1"}])),
            400,
            "invalid type: string \"1\", expected u64",
        ),
        ("/v1/members", &large, 413, "longer than 8388608 bytes"),
        ("/v1/members", &with("id", "m".into()), 409, "taken by another instance"),
        ("/v1/members/none", "{\"leave\":{}}", 404, "there is no such session here"),
        (&session, "{\"leav\":{}}", 400, "line 1: unknown value \"leav\", did you mean \"leave\"?"),
        (&session, "{\"renew\":{\"sequence\":7}}\nnonsense", 400, "line 2: a JSON object is expected"),
        (&session, "\n", 400, "nothing is said"),
        (&session, &lines, 413, "longer than 2097152 bytes"),
        ("/v1/keys/Rooms!/a", "", 400, "pool \"Rooms!\""),
        (&key, "", 400, "a key has 1 to 1024 bytes"),
        ("/v1/keys/rooms/%FF", "", 400, "Invalid UTF-8"),
        ("/v1/keys/rooms/a%zz", "", 400, "a % without two hexadecimal digits"),
        ("/v1/keys/rooms/a", "{\"zon\":\"b\"}", 400, "unknown key \"zon\", did you mean \"zone\"?"),
        ("/v1/keys/live/a", "", 403, "it may not ask about pool \"live\": its certificate is for rooms"),
        ("/v1/member", "", 404, "there is nothing at /v1/member"),
    ];
    let check = |what: &str, answer: &Answer, status: u16, text: &str| {
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
        let problem = answer.json();
        assert_eq!(problem["status"], status, "{what}");
        assert!(problem["detail"].as_str().unwrap().contains(text), "{what}: {problem}");
    };
    for (path, body, status, text) in rows {
        let what = format!("{path} {:.80}", body);
        check(&what, &seed.post(path, body), *status, text);
    }
    check("nobody has it", &seed.ask("/v1/keys/rooms/a", &[]), 404, "nobody owns \"a\" in pool rooms");
    check("of another pool", &seed.ask("/v1/keys/live/a", &[]), 403, "its certificate is for rooms");
    check("another method", &seed.ask("/v1/members", &["-X", "DELETE"]), 405, "does not take DELETE");
    let registration = registration("m").to_string();
    let answer = seed.clone().without_certificate().ask("/v1/members", &["-d", &registration]);
    check("no certificate", &answer, 401, "no certificate of this cluster was shown");
    check(
        "another's name",
        &seed.post("/v1/members", &with("id", "other".into())),
        403,
        "it is \"m\" or begins",
    );
    check("another pool", &seed.post("/v1/members", &with("pool", "chat".into())), 403, "for rooms");

    // Who knows a session's name may have read it in a log.
    let (folder, at) = (cluster.folder(), address(&cluster));
    let other = Seed::at(&at, &enrolled(|arguments| cluster.json(arguments), &at, folder, "n"));
    check("another's session", &other.post(&session, "{\"leave\":{}}"), 404, "there is no such session here");

    // A body that never comes whole leaves nothing behind, and the member is what it was.
    let mut cut = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &address(&cluster)])
        .args(["-cert", &seed.file("cert.pem"), "-key", &seed.file("key.pem")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let head = "POST /v1/members HTTP/1.1\r\nHost: seed\r\nContent-Length: 100\r\n\r\n{\"pool\":";
    cut.stdin.take().unwrap().write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = cut.stdout.take().unwrap().read_to_string(&mut answer);
    let _ = cut.kill();
    let _ = cut.wait();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");

    assert_eq!(member.say(&[json!({"renew": {"sequence": 77_777}})]).status, 204);
    while member.told("renewed")["sequence"] != 77_777 {}
}

impl Seed {
    /// With the authority alone.
    fn without_certificate(mut self) -> Self {
        self.arguments.truncate(4);
        self
    }

    /// Of its credentials.
    fn file(&self, name: &str) -> String {
        self.arguments.iter().find(|argument| argument.ends_with(name)).unwrap().clone()
    }
}

#[test]
fn row_what_grpc_can_not_read_and_methods_that_are_unknown_are_refused_and_harm_nobody() {
    let cluster = start();
    let seed = Seed::of(&cluster);
    let member = Member::register(&seed, &registration("m"), &[]);
    let frame = |length: u32, message: &[u8]| [&[0][..], &length.to_be_bytes(), message].concat();
    let whole = |message: &[u8]| frame(message.len().try_into().unwrap(), message);
    for (method, message, code, text) in [
        ("Understudy/Leader", whole(b"\xff\xff\xff\xff\xff"), "13", "decode"),
        ("Understudy/Leader", frame(u32::MAX, b"x"), "11", "too%20large"),
        ("Understudy/Leader", vec![7; 5], "13", "compression%20flag"),
        ("Seed/Reboot", whole(b""), "12", "there%20is%20no%20method"),
        ("Operator/Status", whole(b""), "7", "may%20not%20call%20Operator.Status"),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&message).unwrap();
        let body = format!("@{}", file.path().display());
        let of_grpc = ["--http2", "-H", "content-type: application/grpc", "-H", "te: trailers"];
        let answer =
            seed.ask(&format!("/protoplex.v1.{method}"), &[&of_grpc[..], &["--data-binary", &body]].concat());
        assert_eq!(answer.header("grpc-status"), Some(code), "{method}: {answer:?}");
        assert!(answer.header("grpc-message").unwrap().contains(text), "{method}: {answer:?}");
    }
    assert_eq!(member.say(&[json!({"renew": {"sequence": 77_777}})]).status, 204);
    while member.told("renewed")["sequence"] != 77_777 {}
}

/// A server in Python that gives up what its side-car asks for, denies it from then on, and tells all that it was asked.
const NOTIFIED: &str = r#"
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
asked, gone = [], {}
class Room(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/asked":
            return self.answer(200, json.dumps(asked))
        key, epoch = self.headers["Protoplex-Key"], int(self.headers["Protoplex-Epoch"])
        if epoch <= gone.get(key, 0):
            return self.answer(421, "", ("Protoplex-Misdirected", "given-up"))
        self.answer(200, sys.argv[2])
    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked.append(message)
        kept = []
        for it in message.get("yield", {}).get("keys", []):
            if it["key"] == "room:kept" and not message["yield"]["idle"]: kept.append(it)
            else: gone[it["key"]] = it["epoch"]
        self.answer(200, json.dumps({"kept": kept}))
    def answer(self, status, body, *fields):
        self.send_response(status)
        for field in fields: self.send_header(*field)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *args): pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Room).serve_forever()
"#;

#[test]
fn a_side_car_asks_its_server_for_keys_before_they_go_and_tells_it_of_those_that_are_lost() {
    let cluster = start();
    let ports = [Port::take(), Port::take()];
    let _servers = ["a", "b"].map(|name| {
        let port = &ports[usize::from(name == "b")];
        let arguments = ["-c", NOTIFIED, &port.number().to_string(), name];
        let server = Killed(Command::new("python3").args(arguments).spawn().unwrap());
        until("the server listens", || TcpStream::connect(port.address()).ok());
        server
    });
    let join = |port: &Port| {
        let backend = format!("http://{}", port.address());
        let arguments =
            ["join", "--pool", "rooms", "--backend", &backend, "--notify", "/keys", "--drain", "1s"];
        Killed(cluster.command(&arguments).stdout(Stdio::null()).spawn().unwrap())
    };
    let mut of_a = join(&ports[0]);
    add_rooms(&cluster, 1);
    let ask = |room: &str| get(&format!("{}/room/{room}/", cluster.http()), &["--max-time", "2"]);
    let rooms: Vec<_> = (0..24).map(|room| room.to_string()).chain(["kept".to_owned()]).collect();
    for room in &rooms {
        until("the room is served", || (ask(room).status == 200).then_some(()));
    }
    let asked = || get(&format!("http://{}/asked", ports[0].address()), &[]).json();
    let yielded = || {
        let asked = asked();
        let yields = asked.as_array().unwrap().iter().filter_map(|it| it["yield"]["keys"].as_array());
        yields.flatten().map(|it| it["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };

    // A lease that ends is told, once the side-car goes on.
    signal(of_a.0.id(), Signal::STOP);
    until("its keys are nobody's", || (ask("0").status == 503).then_some(()));
    assert_eq!(asked(), json!([]), "it can't be told meanwhile");
    signal(of_a.0.id(), Signal::CONT);
    until("it is told, and up to when", || {
        asked()
            .as_array()?
            .iter()
            .find_map(|it| it.pointer("/lease_lost/epoch")?.as_u64())
            .filter(|epoch| *epoch > 0)
    });

    for room in &rooms {
        until("the room is served again", || (ask(room).status == 200).then_some(()));
    }
    let _of_b = join(&ports[1]);
    let begun = Instant::now();
    let at_b = || rooms.iter().filter(|room| ask(room).text() == "b").count();
    while at_b() < rooms.len() / 3 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} rooms have moved", at_b());
    }
    assert!(yielded().len() >= rooms.len() / 3, "{:?}", asked());
    assert_eq!(ask("kept").text(), "a", "what the server keeps stays");
    signal(of_a.0.id(), Signal::TERM);
    assert!(until("the side-car has left", || of_a.0.try_wait().unwrap()).success());
    for room in &rooms {
        assert_eq!(until("the room is served", || Some(ask(room)).filter(|it| it.status == 200)).text(), "b");
    }
    let told = yielded();
    assert!(rooms.iter().all(|room| told.contains(&format!("room:{room}"))), "{told:?}");
}
