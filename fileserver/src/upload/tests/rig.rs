//! A machine for the tests: a datastore, a storage, a staging folder, and children that can be started and killed.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::read::GzDecoder;
use futures_util::stream;
use http::StatusCode;
use protoplex_datastore::sqlite::SqliteStore;
use protoplex_http::{Body, BodyError, Request, Response, Scheme};
use protoplex_runtime::drain::{Drain, Tasks, Trigger};
use protoplex_wire::identity::{Identity, Kind};
use protoplex_wire::proto::{CreateTokenRequest, FindSiteRequest, ListFilesRequest, Site};
use serde_json::Value;
use tokio::task::LocalSet;

use crate::datastore::Client;
use crate::object::{BODY_OFFSET, Encoding, Meta};
use crate::progress::{Live, Notice};
use crate::reference::Reference;
use crate::staging::Staging;
use crate::storage::Bodies;
use crate::storage::directory::Directory;
use crate::upload::{MAX_RECORDINGS, Records, Uploads};

/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(20);

pub(super) const HOST: &str = "example.com";

/// What outlasts a child.
pub(super) struct Machine {
    folder: tempfile::TempDir,
    pub(super) staging: PathBuf,
    pub(super) datastore: Client,
    /// As an operator has it.
    tools: Client,
    /// Whether children can reach the datastore.
    pub(super) datastore_there: Rc<Cell<bool>>,
}

/// A child process, as far as uploads go. Dropping it kills it where it stands.
pub(super) struct Child {
    local: LocalSet,
    pub(super) uploads: Rc<Uploads>,
    /// The CloudEvents that it has published.
    pub(super) events: Rc<RefCell<Vec<Value>>>,
    /// The names that it has invalidated.
    pub(super) invalidated: Rc<RefCell<Vec<String>>>,
    /// Whether live confirms invalidations.
    pub(super) live_there: Rc<Cell<bool>>,
    pub(super) tasks: Tasks,
    pub(super) drain: Trigger,
}

/// What a test's upload may do.
pub(super) struct Terms {
    pub(super) host: &'static str,
    pub(super) path_prefix: &'static str,
    pub(super) max_bytes: u64,
    pub(super) quota_bytes: u64,
    pub(super) uses: u32,
    pub(super) expires_at_ms: i64,
}

impl Default for Terms {
    fn default() -> Self {
        Self { host: "*", path_prefix: "/", max_bytes: 1 << 30, quota_bytes: 0, uses: 0, expires_at_ms: 0 }
    }
}

/// Runs a test on one thread, as a child does.
pub(super) fn run(test: impl AsyncFnOnce(Machine)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let machine = Machine::start().await;
        test(machine).await;
    });
}

impl Machine {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&folder.path().join("cluster")).unwrap();
        let store = SqliteStore::open(&folder.path().join("protoplex.db")).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let client = |identity: &Identity| Client::new(identity.channel(&address).unwrap());
        let fileserver = identity.issue(Kind::Fileserver, "fileserver-1").unwrap();
        let (datastore, tools) = (client(&fileserver), client(&identity));
        let identity = identity.issue(Kind::Datastore, "datastore-1").unwrap();
        tokio::spawn(async move {
            let never = std::future::pending();
            protoplex_datastore::serve::serve(Arc::new(store), listener, &identity, never).await.unwrap();
        });
        let staging = folder.path().join("staging");
        Self { folder, staging, datastore, tools, datastore_there: Rc::new(Cell::new(true)) }
    }

    pub(super) fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    pub(super) fn child(&self) -> Child {
        let (live, mut notices) = Live::new("/fileserver-1/0");
        let (drain, draining) = Drain::new();
        let (events, invalidated) = (Rc::default(), Rc::default());
        let live_there = Rc::new(Cell::new(true));
        let local = LocalSet::new();
        let (heard, names, there) = (Rc::clone(&events), Rc::clone(&invalidated), live_there.clone());
        local.spawn_local(async move {
            while let Some(notice) = notices.recv().await {
                match notice {
                    Notice::Feed(mut feed) => {
                        let heard: Rc<RefCell<Vec<Value>>> = Rc::clone(&heard);
                        tokio::task::spawn_local(async move {
                            while let Some(event) = feed.recv().await {
                                heard.borrow_mut().push(serde_json::from_str(&event.cloud_event).unwrap());
                            }
                        });
                    }
                    Notice::Invalidate(names_and_answer) if there.get() => {
                        let names: &RefCell<Vec<String>> = &names;
                        names.borrow_mut().extend(names_and_answer.names);
                        let _ = names_and_answer.done.send(());
                    }
                    Notice::Invalidate(_) => {}
                }
            }
        });
        let (client, reachable) = (self.datastore.clone(), self.datastore_there.clone());
        let records = Records::new("fileserver-1", move || reachable.get().then(|| client.clone()));
        let staging = Staging::open(&self.staging).unwrap();
        let bodies = Rc::new(Bodies::Directory(Directory::new(self.files())));
        let tasks = Tasks::default();
        let uploads = Uploads::new(records, staging, bodies, live, tasks.clone(), draining);
        Child { local, uploads, events, invalidated, live_there, tasks, drain }
    }

    pub(super) async fn token(&self, terms: Terms) -> String {
        let request = CreateTokenRequest {
            host: terms.host.to_owned(),
            path_prefix: terms.path_prefix.to_owned(),
            max_bytes: terms.max_bytes,
            quota_bytes: terms.quota_bytes,
            uses: terms.uses,
            expires_at_ms: terms.expires_at_ms,
        };
        self.tools.clone().create_token(request).await.unwrap().into_inner().token
    }

    /// What the listing shows under a path.
    pub(super) async fn site(&self, path: &str) -> Option<Site> {
        self.site_of(HOST, path).await
    }

    pub(super) async fn site_of(&self, host: &str, path: &str) -> Option<Site> {
        let request = FindSiteRequest { host: host.to_owned(), path: path.to_owned() };
        self.datastore.clone().find_site(request).await.unwrap().into_inner().site
    }

    pub(super) async fn listed(&self) -> usize {
        self.tools.clone().list_files(ListFilesRequest::default()).await.unwrap().into_inner().sites.len()
    }

    /// The raw bytes of a content, as the storage has it.
    pub(super) async fn stored(&self, reference: &str) -> Vec<u8> {
        let reference: Reference = reference.parse().unwrap();
        let directory = Directory::new(self.files());
        let (meta, file) = directory.open(&reference).await.unwrap();
        unpack(&meta, &file)
    }

    /// The raw bytes of a content, as the staging folder has it.
    pub(super) fn staged(&self, reference: &str) -> Option<Vec<u8>> {
        let staging = Staging::open(&self.staging).unwrap();
        let file = File::open(staging.staged(&reference.parse().unwrap())?).unwrap();
        let meta = Meta::read_from(&file).unwrap();
        Some(unpack(&meta, &file))
    }

    /// Empties the staging folder.
    pub(super) fn forget_staging(&self) {
        fs::remove_dir_all(&self.staging).unwrap();
    }

    /// Waits until neither an upload nor a content is left in the staging folder.
    pub(super) async fn until_nothing_is_staged(&self) {
        until("nothing is staged", || self.nothing_is_staged()).await;
    }

    pub(super) fn nothing_is_staged(&self) -> bool {
        let empty = |folder: &str| is_empty(&self.staging.join(folder));
        empty("uploads") && empty("objects")
    }
}

impl Child {
    /// Runs as the child does: everything that it has spawned goes on meanwhile.
    pub(super) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.local.run_until(work).await
    }

    /// Has the child look through the staging folder, and waits until it has recorded what it found whole.
    pub(super) async fn sweep(&self) {
        let free =
            || [&self.uploads.recordings, &self.uploads.backlog].map(|places| places.available_permits());
        self.run(self.uploads.sweep()).await.unwrap();
        self.run(until("all is recorded", || free() == [MAX_RECORDINGS, 1])).await;
    }

    /// Has the child do something beside everything else.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.local.spawn_local(task);
    }

    /// Sends a request to the upload side.
    pub(super) async fn send(&self, request: Request) -> Answered {
        let uploads = self.uploads.clone();
        Answered::read(self.run(async move { uploads.respond(request, Scheme::Http).await }).await).await
    }

    pub(super) fn kinds(&self) -> Vec<String> {
        self.events.borrow().iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits for an event of this type.
    pub(super) async fn heard(&self, kind: &str) -> Value {
        self.run(until(kind, || self.kinds().iter().any(|heard| heard == kind))).await;
        self.events.borrow().iter().rfind(|event| event["type"] == kind).unwrap().clone()
    }

    /// Lets go on what runs until the upload side has nothing more to do.
    pub(super) async fn settle(&self, machine: &Machine) {
        self.run(machine.until_nothing_is_staged()).await;
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: http::HeaderMap,
    pub(super) json: Value,
}

impl Answered {
    async fn read(response: Response) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect(1 << 20).await.unwrap();
        let json = serde_json::from_slice(&body).unwrap_or_default();
        Self { status: head.status, headers: head.headers, json }
    }

    /// The name of the problem.
    pub(super) fn problem(&self) -> &str {
        self.json["type"].as_str().unwrap_or_default().rsplit(':').next().unwrap_or_default()
    }

    pub(super) fn text(&self, field: &str) -> &str {
        self.json[field].as_str().unwrap_or_default()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A request with a token.
pub(super) fn request(method: &str, target: &str, token: &str) -> http::request::Builder {
    http::Request::builder()
        .method(method)
        .uri(target)
        .header("host", HOST)
        .header("authorization", format!("Bearer {token}"))
}

/// A plain upload with its length declared.
pub(super) fn put(target: &str, token: &str, body: &[u8]) -> Request {
    let builder = request("PUT", target, token).header("content-length", body.len());
    builder.body(Body::full(body.to_vec())).unwrap()
}

/// A body that sends these pieces and then breaks off.
pub(super) fn broken_off(pieces: Vec<Bytes>) -> Body {
    let pieces = pieces.into_iter().map(Ok).chain([Err(BodyError::ClientGone)]);
    Body::stream(stream::iter(pieces))
}

/// Bytes that gzip can do something with.
pub(super) fn text(size: usize) -> Vec<u8> {
    (0..size).map(|i| b"abcdefgh "[(i / 7 + i * i / 91) % 9]).collect()
}

pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn unpack(meta: &Meta, mut file: &File) -> Vec<u8> {
    file.seek(SeekFrom::Start(BODY_OFFSET)).unwrap();
    let mut raw = Vec::new();
    match meta.encoding {
        Encoding::Identity => file.read_to_end(&mut raw).unwrap(),
        Encoding::Gzip => GzDecoder::new(file).read_to_end(&mut raw).unwrap(),
    };
    raw
}
