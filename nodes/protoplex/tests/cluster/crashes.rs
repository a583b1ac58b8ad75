//! Children of a fileserver and of a live node are killed under load: what they were doing fails, and nothing else does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use protoplex_testkit::cluster::Cluster;
use protoplex_testkit::curl::Events;
use protoplex_testkit::until;

use crate::faults::{kill, owner};
use crate::{get, noise, put, start};

/// Clients that read, and as many that upload, one request at a time each.
const CLIENTS: usize = 2;

/// What clients do all the while.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) over: AtomicBool,
    served: AtomicUsize,
    pub(crate) failed_reads: AtomicUsize,
    /// Path and seed of each upload that was answered with 201.
    stored: Mutex<Vec<(String, u64)>>,
    failed_uploads: AtomicUsize,
}

/// Ends the load, also where an assertion fails: its threads are waited for.
pub(crate) struct Over<'a>(pub(crate) &'a Load);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// Begins it: `/files/x` is there.
    pub(crate) fn begin<'scope, 'env>(
        &'env self,
        scope: &'scope thread::Scope<'scope, 'env>,
        cluster: &'env Cluster,
    ) {
        for client in 0..CLIENTS as u64 {
            scope.spawn(move || {
                let url = format!("{}/files/x", cluster.http());
                while !self.over.load(Ordering::Relaxed) {
                    self.count(get(&url, &[]).text() == "x", &self.failed_reads);
                }
            });
            scope.spawn(move || {
                for n in (client * 1_000_000..).take_while(|_| !self.over.load(Ordering::Relaxed)) {
                    let path = format!("/files/load-{n}");
                    let stored = put(cluster, &path, &noise(n, 20_000), &[]).status == 201;
                    self.count(stored, &self.failed_uploads);
                    if stored {
                        self.stored.lock().unwrap().push((path, n));
                    }
                }
            });
        }
    }

    pub(crate) fn count(&self, good: bool, failed: &AtomicUsize) {
        if good { &self.served } else { failed }.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until this many more requests were served.
    pub(crate) fn goes_on(&self, by: usize) {
        let now = self.served.load(Ordering::Relaxed);
        until("the load goes on", || (self.served.load(Ordering::Relaxed) >= now + by).then_some(()));
    }

    pub(crate) fn failed(&self) -> [usize; 2] {
        [&self.failed_reads, &self.failed_uploads].map(|failed| failed.load(Ordering::Relaxed))
    }

    /// What was answered with 201 is there, every byte of it.
    pub(crate) fn is_all_there(&self, cluster: &Cluster) {
        let stored = self.stored.lock().unwrap();
        for (path, seed) in stored.iter() {
            let got = get(&format!("{}{path}", cluster.http()), &[]);
            assert!(got.status == 200 && got.body == noise(*seed, 20_000), "{path} is lost: {}", got.status);
        }
        println!(
            "{} served, {} of them uploads, failed {:?}",
            self.served.load(Ordering::Relaxed),
            stored.len(),
            self.failed()
        );
    }
}

/// Kills a child, and returns when another runs in its place.
fn kill_child(cluster: &Cluster, node: &str, child: usize) {
    let before = cluster.child_pid(node, child);
    kill(before);
    until("the child is replaced", || (cluster.child_pid(node, child) != before).then_some(()));
}

/// The first of these names for which a member answers.
fn name_of(member: &str, prefix: &str, member_of: impl Fn(&str) -> String) -> String {
    let mut names = (0..200).map(|n| format!("{prefix}-{n}"));
    names.find(|name| member_of(name) == member).expect("it answers for one of 200 names")
}

fn topic_url(cluster: &Cluster, topic: &str) -> String {
    format!("{}/.well-known/mercure?topic={topic}", cluster.http())
}

#[test]
fn row_a_fileserver_child_killed_under_load_harms_only_its_own_requests_and_is_replaced() {
    let cluster = start();
    assert_eq!(put(&cluster, "/files/x", b"x", &[]).status, 201);
    let load = Load::default();
    let body = noise(7, 1_500_000);
    let member = |path: &str| {
        let way = cluster.json(&["route", &format!("{}{path}", cluster.http())]);
        way["member"].as_str().unwrap().to_owned()
    };
    thread::scope(|scope| {
        let _over = Over(&load);
        load.begin(scope, &cluster);
        for killed in [0, 1] {
            // One slow upload through each child; only that of the killed one is to break.
            let paths = [0, 1].map(|child| {
                name_of(&format!("fileserver-1:{child}"), &format!("/files/slow-{killed}-{child}"), member)
            });
            let slow = paths.each_ref().map(|path| {
                let id = path.replace('/', "_");
                let events = Events::open(&topic_url(&cluster, &format!("upload/{id}")), &[]);
                let (header, body, cluster) = (format!("Upload-Id: {id}"), &body, &cluster);
                let upload = {
                    let path = path.clone();
                    scope.spawn(move || put(cluster, &path, body, &["-H", &header, "--limit-rate", "300k"]))
                };
                events.next_json(|event| event["type"] == "upload.progress");
                upload
            });
            kill_child(&cluster, "fileserver-1", killed);
            let statuses = slow.map(|upload| upload.join().unwrap().status);
            assert_ne!(statuses[killed], 201, "its child was killed");
            assert_eq!(statuses[1 - killed], 201, "its child was not");
            let kept = get(&format!("{}{}", cluster.http(), paths[1 - killed]), &[]);
            assert!(kept.body == body, "{}", kept.status);
            // What broke leaves nothing, and can be done again.
            assert_eq!(get(&format!("{}{}", cluster.http(), paths[killed]), &[]).status, 404);
            assert_eq!(put(&cluster, &paths[killed], &body, &[]).status, 201);
            load.goes_on(20);
        }
    });
    for failed in load.failed() {
        assert!(failed <= 2 * CLIENTS, "one request of a client at each of two kills: {:?}", load.failed());
    }
    load.is_all_there(&cluster);
    let staging = cluster.data().join("staging/uploads");
    until("nothing is staged", || std::fs::read_dir(&staging).unwrap().next().is_none().then_some(()));
}

#[test]
fn row_a_live_child_killed_under_load_ends_only_its_own_streams_and_harms_no_upload() {
    let cluster = start();
    assert_eq!(put(&cluster, "/files/x", b"x", &[]).status, 201);
    let load = Load::default();
    let owner = |id: &str| owner(&cluster, &format!("upload/{id}"));
    let ids = [0, 1].map(|child| name_of(&format!("live-1:{child}"), &format!("watched-{child}"), owner));
    let urls = ids.each_ref().map(|id| topic_url(&cluster, &format!("upload/{id}")));
    let upload = |id: &str| {
        let answer = put(&cluster, "/files/watched", b"watched", &["-H", &format!("Upload-Id: {id}")]);
        assert_eq!(answer.status, 201, "{answer:?}");
    };
    thread::scope(|scope| {
        let _over = Over(&load);
        load.begin(scope, &cluster);
        for killed in [0, 1] {
            let kept = Events::open(&urls[1 - killed], &[]);
            let lost = Events::open(&urls[killed], &[]);
            upload(&ids[killed]);
            lost.next_json(|event| event["type"] == "upload.finished");
            let before = cluster.child_pid("live-1", killed);
            kill(before);
            // At once, while the other is away.
            upload(&ids[1 - killed]);
            kept.next_json(|event| event["type"] == "upload.finished");
            until("the child is replaced", || (cluster.child_pid("live-1", killed) != before).then_some(()));
            let again = Events::open(&urls[killed], &[]);
            upload(&ids[killed]);
            again.next_json(|event| event["type"] == "upload.finished");
            upload(&ids[1 - killed]);
            kept.next_json(|event| event["type"] == "file.stored");
            load.goes_on(20);
        }
    });
    assert_eq!(load.failed(), [0, 0], "neither reads nor uploads need a live node");
    load.is_all_there(&cluster);
}

#[test]
fn row_forms_with_a_forged_token_are_refused_before_their_bodies_and_keep_nobody_out() {
    let cluster = start();
    let address = cluster.http().strip_prefix("http://").unwrap();
    // More than a child has places for uploads. None of them ever sends its body, or hangs up.
    let crowd: Vec<_> = (0..200)
        .map(|n| {
            let mut client = TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let head = format!(
                "POST /files/{n}/ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer px_forged.token\r\n\
                 Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 10000000\r\n\r\n"
            );
            client.write_all(head.as_bytes()).unwrap();
            client
        })
        .collect();
    assert_eq!(put(&cluster, "/files/good", b"good", &[]).status, 201);
    for client in &crowd {
        let mut answer = BufReader::new(client).lines();
        let status = answer.next().unwrap().unwrap();
        assert!(status.starts_with("HTTP/1.1 401 "), "{status}");
    }
    let mut first = String::new();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = "POST /files/ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer px_forged.token\r\n\
                Connection: close\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    let _ = client.read_to_string(&mut first);
    assert!(first.contains("urn:protoplex:problem:token-forged"), "{first}");
}
