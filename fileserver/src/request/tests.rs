//! Downloads over real connections, with a real datastore and storage. The seed is away all the while, so nothing is
//! registered and nothing about sites is remembered.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HOST, RANGE,
};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use protoplex_datastore::sqlite::SqliteStore;
use protoplex_http::upstream::{Pool, Settings};
use protoplex_http::{AccessLog, Fronts, Limits, Listener};
use protoplex_runtime::drain::{Drain, Tasks, Trigger};
use protoplex_wire::follow::{Builds, Follower, Link};
use protoplex_wire::identity::{Identity, Kind};
use protoplex_wire::proto::{
    self, BeginUploadRequest, CompleteUploadRequest, CreateTokenRequest, StoredFile,
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::*;
use crate::cache::Cache;
use crate::credential::Credentials;
use crate::datastore::Client;
use crate::object::Meta;
use crate::progress::Live;
use crate::registrations::Registrations;
use crate::s3_files::Source;
use crate::staging::Staging;
use crate::storage::Bodies;
use crate::storage::contract_tests::{noise, stage};
use crate::storage::directory::Directory;
use crate::storage::fault_s3::{Fault, FaultS3};
use crate::upload::Records;

const DEADLINE: Duration = Duration::from_secs(30);

/// A fileserver child in this process.
struct Bench {
    address: SocketAddr,
    app_files: Rc<AppFiles>,
    /// What the seed has told, once it has.
    known: Rc<RefCell<Option<Rc<Builds>>>>,
    inflates: Inflates,
    bodies: Bodies,
    datastore: Client,
    /// As an operator has it.
    tools: Client,
    datastore_there: Rc<Cell<bool>>,
    s3: Option<FaultS3>,
    folder: TempDir,
    _drain: Trigger,
}

impl Bench {
    async fn on_directory() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path().join("files"));
        Self::start(folder, Bodies::Directory(directory.clone()), Source::Directory(directory), None).await
    }

    async fn on_s3() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = FaultS3::start(&folder.path().join("s3"));
        let s3 = server.hasty_client().await;
        let cache = Cache::new(folder.path().join("cache"), s3, Tasks::default());
        Self::start(folder, Bodies::S3(cache.clone()), Source::Cache(cache), Some(server)).await
    }

    async fn start(folder: TempDir, bodies: Bodies, source: Source, s3: Option<FaultS3>) -> Self {
        let identity = Identity::open_or_create(&folder.path().join("cluster")).unwrap();
        let (datastore, tools) = datastore(&folder, &identity).await;
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let who = Follower {
            node: "fileserver-1".into(),
            kind: "fileserver".into(),
            zone: String::new(),
            membership: None,
        };
        let link = Link::open(&identity, &nobody.to_string(), who).unwrap();
        let (drain, draining) = Drain::new();
        let tasks = Tasks::default();
        let pool = Pool::new(Settings::default());
        let registrations =
            Registrations::new(link, pool, Credentials::new(&identity), tasks.clone(), draining.clone());
        let staging = Staging::open(&folder.path().join("staging")).unwrap();
        let there = Rc::new(Cell::new(true));
        let reach = |client: &Client| {
            let (client, there) = (client.clone(), Rc::clone(&there));
            move || there.get().then(|| client.clone())
        };
        let records = Records::new("fileserver-1", reach(&datastore));
        let (live, _) = Live::new("/fileserver-1/0");
        let known = Rc::new(RefCell::new(Some(Rc::default())));
        let told = Rc::clone(&known);
        let fileserver = Rc::new(Fileserver {
            app_files: Rc::new(AppFiles::new(move || told.borrow().clone())),
            s3_files: S3Files::new(source, staging.clone(), Rc::clone(&registrations)),
            vhost_files: VhostFiles::new(reach(&datastore), registrations),
            uploads: Uploads::new(records, staging, Rc::new(bodies.clone()), live, tasks, draining.clone()),
            inflates: Inflates::default(),
            app_hits: downloads("app"),
        });
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (app_files, inflates) = (Rc::clone(&fileserver.app_files), fileserver.inflates.clone());
        let listeners = vec![Listener { socket, tls: None, fronts: Fronts::default() }];
        tokio::task::spawn_local(async move {
            protoplex_http::serve(listeners, Limits::default(), AccessLog::off(), draining, fileserver)
                .await
                .unwrap();
        });
        let datastore_there = there;
        Self {
            address,
            app_files,
            known,
            inflates,
            bodies,
            datastore,
            tools,
            datastore_there,
            s3,
            folder,
            _drain: drain,
        }
    }

    fn stage(&self, body: &[u8]) -> (Reference, Meta, PathBuf) {
        let path = self.folder.path().join("put");
        let (reference, meta) = stage(&path, body);
        (reference, meta, path)
    }

    /// Puts a body into the storage, past the cache.
    async fn put(&self, body: &[u8]) -> Reference {
        let (reference, meta, path) = self.stage(body);
        match &self.bodies {
            Bodies::S3(cache) => cache.s3().put(&reference, &meta, &path).await.unwrap(),
            bodies => bodies.put(&reference, &meta, &path).await.unwrap(),
        }
        std::fs::remove_file(path).unwrap();
        reference
    }

    /// Records a site in the datastore, as an upload does.
    async fn record(&self, path: &str, reference: &Reference, size: u64) {
        self.record_as(path, reference, size, "text/css").await;
    }

    async fn record_as(&self, path: &str, reference: &Reference, size: u64, content_type: &str) {
        let mut datastore = self.datastore.clone();
        let token = CreateTokenRequest {
            host: "*".into(),
            path_prefix: "/".into(),
            max_bytes: 1 << 30,
            ..Default::default()
        };
        let token = self.tools.clone().create_token(token).await.unwrap().into_inner().token;
        let upload = format!("{:032x}", rand::random::<u128>());
        let (host, path) = ("example.com".to_owned(), path.to_owned());
        let begin = BeginUploadRequest {
            token,
            host: host.clone(),
            path: path.clone(),
            size: Some(size),
            upload: upload.clone(),
            watch: String::new(),
        };
        datastore.begin_upload(begin).await.unwrap();
        let file = StoredFile {
            reference: reference.to_string(),
            size,
            stored_size: size,
            encoding: "identity".into(),
            content_type: "text/plain".into(),
            node: "fileserver-1".into(),
            stored_sha256: "00".repeat(32),
            ..Default::default()
        };
        let complete =
            CompleteUploadRequest { upload, file: Some(file), host, path, content_type: content_type.into() };
        datastore.complete_upload(complete).await.unwrap();
    }

    async fn mark_stored(&self, reference: &Reference) {
        let request = proto::MarkStoredRequest { reference: reference.to_string() };
        self.datastore.clone().mark_stored(request).await.unwrap();
    }

    async fn ask(&self, method: Method, target: &str, fields: &[(HeaderName, &str)]) -> Answered {
        let socket = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut request =
            http::Request::builder().method(method).uri(target).header(HOST, "example.com:8080");
        for (name, value) in fields {
            request = request.header(name, *value);
        }
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = body.collect().await.ok().map(|body| body.to_bytes());
        Answered { head, body }
    }

    async fn get(&self, target: &str) -> Answered {
        self.ask(Method::GET, target, &[]).await
    }
}

/// As a fileserver has it, and as an operator does.
async fn datastore(folder: &TempDir, identity: &Identity) -> (Client, Client) {
    let store = SqliteStore::open(&folder.path().join("protoplex.db")).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let client = |identity: &Identity| Client::new(identity.channel(&address).unwrap());
    let clients = (client(&identity.issue(Kind::Fileserver, "fileserver-1").unwrap()), client(identity));
    let identity = identity.issue(Kind::Datastore, "datastore-1").unwrap();
    tokio::spawn(async move {
        protoplex_datastore::serve::serve(Arc::new(store), listener, &identity, std::future::pending())
            .await
            .unwrap();
    });
    clients
}

struct Answered {
    head: http::response::Parts,
    /// None where it broke off.
    body: Option<Bytes>,
}

impl Answered {
    fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    fn field(&self, name: impl http::header::AsHeaderName) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn body(&self) -> &[u8] {
        self.body.as_ref().unwrap()
    }

    /// A problem that says what it is, and is not kept.
    fn is_problem(&self, status: u16, kind: &str) {
        let problem: serde_json::Value = serde_json::from_slice(self.body()).unwrap();
        assert_eq!((self.status(), &problem["status"]), (status, &status.into()));
        assert_eq!(problem["type"], format!("urn:protoplex:problem:{kind}"));
        assert_eq!(self.field(CONTENT_TYPE), "application/problem+json");
        assert_eq!(self.field(CACHE_CONTROL), "no-store");
        assert_eq!(self.field("retry-after").is_empty(), !matches!(status, 503 | 504), "{kind}");
    }
}

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { tokio::time::timeout(DEADLINE, test).await.unwrap() });
}

#[test]
fn a_reference_is_served_whole_in_ranges_and_not_at_all_where_it_is_known() {
    local(async {
        let bench = Bench::on_directory().await;
        let body = noise(400_000);
        let target = format!("/{}", bench.put(&body).await);
        let whole = bench.get(&target).await;
        assert_eq!((whole.status(), whole.body()), (200, &body[..]));
        assert_eq!(whole.field(CACHE_CONTROL), "public, max-age=31536000, immutable");
        assert_eq!(whole.field("x-content-type-options"), "nosniff");
        assert_eq!(whole.field(CONTENT_LENGTH), "400000");
        let part = bench.ask(Method::GET, &target, &[(RANGE, "bytes=100000-299999")]).await;
        assert_eq!((part.status(), part.body()), (206, &body[100_000..300_000]));
        let known =
            bench.ask(Method::GET, &target, &[(http::header::IF_NONE_MATCH, whole.field(ETAG))]).await;
        assert_eq!((known.status(), known.body().len()), (304, 0));
        let head = bench.ask(Method::HEAD, &target, &[]).await;
        assert_eq!((head.status(), head.field(CONTENT_LENGTH), head.body().len()), (200, "400000", 0));
    });
}

#[test]
fn a_body_stored_as_gzip_goes_out_either_way() {
    local(async {
        let bench = Bench::on_directory().await;
        let raw = b"the same words again and again, ".repeat(10_000);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &raw).unwrap();
        let packed = encoder.finish().unwrap();
        let (reference, meta, path) = bench.stage(&packed);
        let meta = Meta { size: raw.len() as u64, encoding: Encoding::Gzip, ..meta };
        meta.write_to(&std::fs::File::options().write(true).open(&path).unwrap()).unwrap();
        bench.bodies.put(&reference, &meta, &path).await.unwrap();

        let target = format!("/{reference}");
        let gzip = bench.ask(Method::GET, &target, &[(ACCEPT_ENCODING, "gzip")]).await;
        assert_eq!((gzip.field(CONTENT_ENCODING), gzip.body()), ("gzip", &packed[..]));
        let plain = bench.get(&target).await;
        assert_eq!((plain.field(CONTENT_ENCODING), plain.body()), ("", &raw[..]));
        assert_eq!(plain.field("vary"), "Accept-Encoding");
        assert_ne!(plain.field(ETAG), gzip.field(ETAG));
        let part = bench.ask(Method::GET, &target, &[(RANGE, "bytes=-32"), (ACCEPT_ENCODING, "gzip")]).await;
        assert_eq!((part.status(), part.body()), (206, &raw[..32]));
    });
}

#[test]
fn a_site_has_its_own_type_and_date_and_a_life_of_a_month() {
    local(async {
        let bench = Bench::on_directory().await;
        let reference = bench.put(b"body{}").await;
        bench.record("/a b.css", &reference, 6).await;
        let answer = bench.get("/a%20b.css").await;
        assert_eq!((answer.status(), answer.body()), (200, &b"body{}"[..]));
        assert_eq!(answer.field(CONTENT_TYPE), "text/css");
        assert_eq!(answer.field(CACHE_CONTROL), "public, max-age=2592000");
        let again = bench
            .ask(
                Method::GET,
                "/a%20b.css",
                &[(http::header::IF_MODIFIED_SINCE, answer.field("last-modified"))],
            )
            .await;
        assert_eq!(again.status(), 304);
        bench.get("/other.css").await.is_problem(404, "no-such-file");
    });
}

#[test]
fn the_app_comes_first() {
    local(async {
        let bench = Bench::on_directory().await;
        let reference = bench.put(b"from a site").await;
        bench.record("/", &reference, 11).await;
        assert_eq!(bench.get("/").await.body(), b"from a site");
        let asset = proto::Asset {
            path: "/index.html".into(),
            content_type: "text/html".into(),
            identity: b"from the app".to_vec(),
            ..Default::default()
        };
        bench
            .app_files
            .adopt(&proto::Build { host: "*".into(), version: 1, ..Default::default() }, vec![asset]);
        let page = bench.get("/").await;
        assert_eq!((page.body(), page.field(CACHE_CONTROL)), (&b"from the app"[..], "public, no-cache"));
    });
}

#[test]
fn what_is_uploaded_can_run_nothing_on_the_apps_origin() {
    local(async {
        let bench = Bench::on_directory().await;
        let reference = bench.put(b"<script>alert(1)</script>").await;
        bench.record_as("/page.html", &reference, 25, "text/html").await;
        let policy = async |target: &str| {
            let answer = bench.get(target).await;
            assert_eq!((answer.status(), answer.field("x-content-type-options")), (200, "nosniff"));
            answer.field("content-security-policy").to_owned()
        };
        assert_eq!(policy(&format!("/{reference}")).await, "sandbox");
        assert_eq!(policy("/page.html").await, "", "a site of its own");
        let asset = proto::Asset {
            path: "/index.html".into(),
            content_type: "text/html".into(),
            identity: b"the app".to_vec(),
            ..Default::default()
        };
        let build = |host: &str| proto::Build { host: host.into(), version: 1, ..Default::default() };
        let tell = |hosts: &[&str]| {
            let current = hosts.iter().map(|host| build(host)).collect();
            bench.known.replace(Some(Rc::new(Builds { generation: 1, current })));
        };
        tell(&["other.com"]);
        assert_eq!(policy("/page.html").await, "", "the app is elsewhere");
        tell(&["other.com", "example.com"]);
        assert_eq!(policy("/page.html").await, "sandbox", "a guest of the app's, which is not fetched yet");
        bench.app_files.adopt(&build("example.com"), vec![asset]);
        assert_eq!(policy("/page.html").await, "sandbox", "a guest of the app's");
        assert_eq!(policy("/").await, "", "the app itself");
        bench.known.replace(None);
        assert_eq!(policy("/page.html").await, "sandbox", "nobody has told yet whose host it is");
        assert_eq!(
            bench.get("/page.html").await.field(CACHE_CONTROL),
            "no-store",
            "that is no lasting answer"
        );
    });
}

#[test]
fn row_too_many_ranges_that_are_dear_to_reach_are_503_and_harm_nobody_else() {
    local(async {
        let bench = Bench::on_directory().await;
        let raw = vec![b' '; 8 << 20];
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &raw).unwrap();
        let packed = encoder.finish().unwrap();
        let (reference, meta, path) = bench.stage(&packed);
        let meta = Meta { size: raw.len() as u64, encoding: Encoding::Gzip, ..meta };
        meta.write_to(&std::fs::File::options().write(true).open(&path).unwrap()).unwrap();
        bench.bodies.put(&reference, &meta, &path).await.unwrap();
        let target = format!("/{reference}");
        let last = [(RANGE, "bytes=-1")];
        let mut turns = Vec::new();
        while let Some(turn) = bench.inflates.begin(5 << 20).await {
            turns.push(turn);
        }
        assert!(!turns.is_empty());
        bench.ask(Method::GET, &target, &last).await.is_problem(503, "busy");
        assert_eq!(bench.ask(Method::GET, &target, &[(RANGE, "bytes=0-0")]).await.status(), 206);
        assert_eq!(bench.get(&target).await.body().len(), raw.len());
        assert_eq!(bench.ask(Method::GET, &target, &[(ACCEPT_ENCODING, "gzip")]).await.body(), packed);
        drop(turns);
        assert_eq!(bench.ask(Method::GET, &target, &last).await.body(), b" ");
    });
}

#[test]
fn row_path_never_leads_to_a_file_outside() {
    local(async {
        let bench = Bench::on_directory().await;
        std::fs::write(bench.folder.path().join("files-secret"), "secret").unwrap();
        let long = format!("/{}", "a".repeat(10_000));
        for target in [
            "/../files-secret",
            "/%2e%2e/files-secret",
            "/..%2ffiles-secret",
            "/..%5cfiles-secret",
            "/a%00",
            "/a%0a",
            "/.%2e/.%2e/etc/passwd",
            "/%ff",
            "/%",
            &long,
        ] {
            let answer = bench.get(target).await;
            answer.is_problem(400, "bad-path");
        }
        for target in ["/%252e%252e/files-secret", "//etc/passwd", "/files-secret", "/...", "/cluster/token"]
        {
            bench.get(target).await.is_problem(404, "no-such-file");
        }
        let absent = format!("/{}", "_".repeat(128));
        bench.get(&absent).await.is_problem(404, "no-such-file");
    });
}

#[test]
fn methods_that_are_not_answered_are_told() {
    local(async {
        let bench = Bench::on_directory().await;
        for method in [Method::DELETE, Method::PATCH, Method::TRACE] {
            let answer = bench.ask(method, "/a", &[]).await;
            answer.is_problem(405, "method-not-allowed");
            assert_eq!(answer.field("allow"), "GET, HEAD, OPTIONS, POST, PUT");
        }
        let options = bench.ask(Method::OPTIONS, "/a", &[]).await;
        assert_eq!((options.status(), options.field("allow")), (204, "GET, HEAD, OPTIONS, POST, PUT"));
    });
}

#[test]
fn row_datastore_away_what_is_known_is_served_and_the_rest_is_503() {
    local(async {
        let bench = Bench::on_directory().await;
        let reference = bench.put(b"still here").await;
        bench.record("/a", &reference, 10).await;
        bench.datastore_there.set(false);
        bench.get("/a").await.is_problem(503, "datastore-unavailable");
        assert_eq!(bench.get(&format!("/{reference}")).await.body(), b"still here");
        bench.datastore_there.set(true);
        assert_eq!(bench.get("/a").await.body(), b"still here");
        bench.get("/b").await.is_problem(404, "no-such-file");

        bench.datastore_there.set(false);
        for _ in 0..3 {
            let stale = bench.get("/a").await;
            assert_eq!((stale.body(), stale.field(CACHE_CONTROL)), (&b"still here"[..], "no-store"));
        }
        bench.get("/b").await.is_problem(503, "datastore-unavailable");

        bench.datastore_there.set(true);
        let other = bench.put(b"another").await;
        bench.record("/a", &other, 7).await;
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while bench.get("/a").await.body() != b"another" {
            assert!(tokio::time::Instant::now() < deadline, "the datastore is asked again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(bench.get("/a").await.field(CACHE_CONTROL), "public, max-age=2592000");
    });
}

#[test]
fn row_s3_failing_is_502_503_or_504_with_no_negative_entry_and_the_cached_is_served() {
    local(async {
        let bench = Bench::on_s3().await;
        let s3 = bench.s3.as_ref().unwrap();
        let cached = format!("/{}", bench.put(b"cached").await);
        let other = format!("/{}", bench.put(b"other").await);
        assert_eq!(bench.get(&cached).await.body(), b"cached");
        for (fault, status) in [
            (Fault::Status(503), 503),
            (Fault::Hang, 504),
            (Fault::Status(403), 502),
            (Fault::Status(404), 502),
        ] {
            s3.spoil_all(Some(fault));
            bench.get(&other).await.is_problem(status, "storage-unavailable");
            assert_eq!(bench.get(&cached).await.body(), b"cached");
        }
        s3.spoil_all(None);
        assert_eq!(bench.get(&other).await.body(), b"other");
    });
}

#[test]
fn row_s3_with_corrupt_bytes_no_client_gets_a_whole_wrong_body() {
    local(async {
        let bench = Bench::on_s3().await;
        let s3 = bench.s3.as_ref().unwrap();
        let body = noise(2_000_000);
        let target = format!("/{}", bench.put(&body).await);
        s3.spoil(Method::GET, Fault::Corrupt);
        let answer = bench.get(&target).await;
        assert!(answer.body.is_none() || answer.status() == 502);
        assert_eq!(bench.get(&target).await.body(), &body[..]);
    });
}

#[test]
fn a_recorded_file_without_a_body_is_never_a_404() {
    local(async {
        let bench = Bench::on_directory().await;
        let (reference, _, _) = bench.stage(b"on its way");
        bench.record("/a", &reference, 10).await;
        bench.get("/a").await.is_problem(503, "body-underway");
        bench.mark_stored(&reference).await;
        bench.get("/a").await.is_problem(502, "body-missing");
    });
}
