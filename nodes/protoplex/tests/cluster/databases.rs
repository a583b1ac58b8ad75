//! A cluster's structured data in a real PostgreSQL server, which goes away, and its ways from one database to another.

use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, thread};

use protoplex_testkit::cluster::{Cluster, signal};
use protoplex_testkit::ports::Port;
use protoplex_testkit::postgres::{PASSWORD, Server};
use protoplex_testkit::until;
use rustix::process::Signal;

use crate::running::Running;
use crate::{get, plan, put, put_with};

/// The cluster goes before the server that it uses.
struct Bench {
    cluster: Cluster,
    server: Server,
}

fn start() -> Bench {
    let server = Server::start();
    let url = server.database();
    let cluster = plan().file(&format!("[datastore]\nurl = \"{url}\"\n")).start();
    Bench { cluster, server }
}

impl Bench {
    fn meta(&self, page: &str) -> String {
        format!("http://{}/{page}", self.cluster.node("datastore-1")["meta"].as_str().unwrap())
    }

    fn upload(&self, path: &str) -> u16 {
        put(&self.cluster, path, path.as_bytes(), &[]).status
    }

    fn is_served(&self, path: &str) -> bool {
        let answer = get(&format!("{}{path}", self.cluster.http()), &[]);
        answer.status == 200 && answer.body == path.as_bytes()
    }

    /// Of what the datastore has logged.
    fn lines_with(&self, text: &str) -> usize {
        let logs = self.cluster.logs();
        let its = logs.lines().filter(|line| line.contains("\"node\":\"datastore-1\""));
        its.filter(|line| line.contains(text)).count()
    }
}

#[test]
fn row_a_database_that_goes_away_is_told_once_and_comes_back_by_itself() {
    let bench = start();
    assert_eq!(bench.upload("/files/before"), 201);
    let (ready, status) = (bench.meta("readyz"), bench.meta("status"));
    assert_eq!(get(&ready, &[]).status, 200);
    assert!(bench.is_served("/files/before"));

    bench.server.kill();
    until("the datastore isn't ready", || (get(&ready, &[]).status == 503).then_some(()));
    assert!(get(&status, &[]).text().contains("away: "));
    assert!(
        get(&ready, &[]).text().contains("not ready\nthe database is away: "),
        "{}",
        get(&ready, &[]).text()
    );
    assert!(bench.is_served("/files/before"), "what fileservers know goes on");
    until("the status says who waits, and for what", || {
        let status = bench.cluster.run(&["status"]);
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with("datastore-1"))?;
        (line.contains("WAITING") && line.contains("the database is away: ")).then_some(())
    });
    let refused = bench.upload("/files/meanwhile");
    assert!(matches!(refused, 502..=504), "{refused}");
    until("a command is told why", || {
        let refused = bench.cluster.run(&["handler", "disable", "files"]);
        String::from_utf8_lossy(&refused.stderr).contains("the database is away: ").then_some(())
    });
    until("the live nodes' leases have ended, and with them what stood for what is known", || {
        let answer = get(&format!("{}/files/before", bench.cluster.http()), &[]);
        assert!(answer.status == 200 && answer.body == b"/files/before", "{answer:?}");
        (answer.header("cache-control") == Some("no-store")).then_some(())
    });

    bench.server.resume();
    until("the datastore is ready", || (get(&ready, &[]).status == 200).then_some(()));
    until("an upload is taken", || (bench.upload("/files/after") == 201).then_some(()));
    assert!(bench.is_served("/files/before") && bench.is_served("/files/after"));
    assert_eq!(bench.lines_with("the database is away"), 1, "{}", bench.cluster.logs());
    assert_eq!(bench.lines_with("the database is back"), 1);
    for library in ["sqlx::postgres", "sqlx_core"] {
        let its = format!("\"target\":\"{library}");
        assert_eq!(bench.lines_with(&its), 0, "it is said once: {}", bench.cluster.logs());
    }
}

#[test]
fn row_a_database_that_is_away_at_the_start_is_told_to_whoever_asks_and_waited_for() {
    let server = Server::start();
    let url = server.database();
    server.kill();
    let folder = tempfile::tempdir().unwrap();
    let [seed, datastore, metas @ ..] = [Port::take(), Port::take(), Port::take(), Port::take()];
    let start = |kind: &str, more: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_protoplex"));
        command.current_dir(folder.path()).args(["--data", "data", "--seed", &seed.address(), kind]);
        command.args(more.iter().flat_map(|setting| ["--set", setting]));
        Running::start(command)
    };
    let listens = [
        format!("datastore.url={url:?}"),
        format!("datastore.listen={}", datastore.address()),
        format!("meta.datastore={}", metas[0].address()),
    ];
    let _datastore = start("datastore", &listens);
    let ready = format!("http://{}/readyz", metas[0].address());
    until("the datastore says why it isn't ready", || {
        let answer = get(&ready, &["--max-time", "5"]);
        (answer.status == 503 && answer.text().contains("\nthe database is away: ")).then_some(())
    });
    let listens = [
        format!("seed.listen={}", seed.address()),
        format!("seed.datastore={}", datastore.address()),
        format!("meta.seed={}", metas[1].address()),
    ];
    let _seed = start("seed", &listens);
    until("a command is told why", || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_protoplex"));
        command.current_dir(folder.path()).args(["--data", "data", "--seed", &seed.address()]);
        let refused = command.args(["handler", "remove", "x"]).output().unwrap();
        String::from_utf8_lossy(&refused.stderr).contains("the database is away: ").then_some(())
    });
    server.resume();
    for meta in &metas {
        let ready = format!("http://{}/readyz", meta.address());
        until("it is ready", || (get(&ready, &["--max-time", "5"]).status == 200).then_some(()));
    }
}

#[test]
fn the_password_of_the_database_is_shown_nowhere() {
    let bench = start();
    assert_eq!(bench.upload("/files/a"), 201);
    let config = get(&bench.meta("config"), &[]).json();
    assert_eq!(config["config"]["url"], "***", "{config}");
    let secret = PASSWORD.replace(' ', "%20");
    let shown = [get(&bench.meta("status"), &[]).text(), config.to_string(), bench.cluster.logs()];
    assert!(shown.iter().all(|text| !text.contains(PASSWORD) && !text.contains(&secret)));
    assert!(!bench.cluster.data().join("datastore").exists(), "no file beside it");
}

#[test]
fn row_a_url_of_no_database_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("protoplex.toml");
    let table = [
        (
            "url = \"mysql://app:hush@host/edge\"",
            "2: datastore.url: names no kind of database that Protoplex knows",
        ),
        (
            "url = \"postgres://app@host/edge?sslmod=x\"",
            "2: datastore.url: has the unknown parameter \"sslmod\"",
        ),
        ("password = \"hush\"", "2: datastore.password: is only for a `url`"),
    ];
    for (line, why) in table {
        fs::write(&file, format!("[datastore]\n{line}\n")).unwrap();
        let checked = Command::new(env!("CARGO_BIN_EXE_protoplex")).arg("check").arg(&file).output().unwrap();
        let told = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(checked.status.code(), Some(2), "{told}");
        assert!(told.contains(why) && !told.contains("hush"), "{told}");
    }
}

#[test]
fn a_cluster_moves_from_its_file_to_postgresql_and_back() {
    let server = Server::start();
    let mut cluster = plan().file("").start();
    let upload = |cluster: &Cluster, path: &str| put(cluster, path, path.as_bytes(), &[]).status;
    let is_served = |cluster: &Cluster, path: &str| {
        let answer = get(&format!("{}{path}", cluster.http()), &[]);
        answer.status == 200 && answer.body == path.as_bytes()
    };
    assert_eq!(upload(&cluster, "/files/of-the-file"), 201);
    cluster.json(&[
        "handler",
        "add",
        "rooms",
        "--path",
        "/room/{room}",
        "--key",
        "{room}",
        "--pool",
        "rooms",
    ]);
    let handlers = cluster.json(&["handler", "list"]);
    let token = crate::token(&cluster, &["--path", "/files/", "--uses", "2"]);
    assert_eq!(put_with(&cluster, &token, "/files/first", b"1", &[]).status, 201);

    let url = server.database();
    let migrate = ["datastore", "migrate", "--to", &url];
    let refused = cluster.run(&migrate);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("is in use"), "{told}");
    let archive = cluster.folder().join("edge.jsonl.gz");
    let exported = cluster.json(&["datastore", "export", archive.to_str().unwrap()]);
    assert!(exported["rows"].as_u64().unwrap() > 5, "{exported}");

    cluster.stop();
    let moved = cluster.json(&migrate);
    assert!(!moved.to_string().contains(PASSWORD), "{moved}");
    let listen = format!("datastore.listen={}", Port::take().address());
    let start = cluster.run(&["datastore", "--set", &listen, "--set", "meta.datastore=127.0.0.1:0"]);
    assert!(!start.status.success(), "nobody goes on with the old one by mistake");
    let logged = [String::from_utf8_lossy(&start.stderr).into_owned(), cluster.logs()].concat();
    assert!(logged.contains("everything was moved to"), "{logged}");

    let configuration = cluster.folder().join("protoplex.toml");
    fs::write(&configuration, format!("[datastore]\nurl = \"{url}\"\n")).unwrap();
    cluster.start();
    assert!(is_served(&cluster, "/files/of-the-file"));
    assert_eq!(cluster.json(&["handler", "list"])["handlers"], handlers["handlers"]);
    assert_eq!(put_with(&cluster, &token, "/files/second", b"2", &[]).status, 201, "the second use");
    assert_eq!(put_with(&cluster, &token, "/files/third", b"3", &[]).status, 403, "there were two");
    assert_eq!(upload(&cluster, "/files/of-postgresql"), 201);

    cluster.stop();
    let back = ["datastore", "migrate", "--to", "sqlite"];
    assert!(!cluster.run(&back).status.success(), "what is there isn't lost by mistake");
    cluster.json(&[&back[..], &["--replace"]].concat());
    fs::write(&configuration, "").unwrap();
    cluster.start();
    assert!(is_served(&cluster, "/files/of-the-file") && is_served(&cluster, "/files/of-postgresql"));
    cluster.stop();

    // The export is of before all that.
    cluster.json(&["datastore", "import", "--replace", archive.to_str().unwrap()]);
    cluster.start();
    assert!(is_served(&cluster, "/files/of-the-file"));
    assert_eq!(get(&format!("{}/files/of-postgresql", cluster.http()), &[]).status, 404);
}

#[test]
fn an_export_leaves_links_and_pipes_what_they_are() {
    let cluster = plan().start();
    let folder = cluster.folder();
    let [file, link, pipe] = ["edge.jsonl", "link", "pipe"].map(|name| folder.join(name));
    let export = |to: &Path| cluster.json(&["datastore", "export", to.to_str().unwrap()]);

    fs::write(&file, "an older one").unwrap();
    symlink(&file, &link).unwrap();
    let exported = export(&link);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let in_file = around(&fs::read_to_string(&file).unwrap(), &exported);

    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (came, exported) = thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read_to_string(&pipe).unwrap());
        let exported = export(&pipe);
        (reader.join().unwrap(), exported)
    });
    assert_eq!(around(&came, &exported), in_file);
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());

    let refused = cluster.run(&["datastore", "export", folder.to_str().unwrap()]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && told.contains("can't write"), "{told}");
}

/// An archive's lines that are no rows.
fn around(archive: &str, exported: &serde_json::Value) -> usize {
    let rows = exported["rows"].as_u64().unwrap() as usize;
    assert!(rows > 5, "{archive}");
    archive.lines().count() - rows
}

#[test]
fn row_an_export_that_is_ended_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    // A server that takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("datastore.url=postgres://edge@{}/edge?sslmode=disable", silent.local_addr().unwrap());
    let [file, part] = ["edge.jsonl", "edge.jsonl.part"].map(|name| folder.path().join(name));
    fs::write(&file, "an older one").unwrap();
    for end in [Signal::INT, Signal::TERM] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_protoplex"));
        command.args(["--set", &url, "datastore", "export", "edge.jsonl"]).current_dir(folder.path());
        let export = command.stderr(Stdio::piped()).spawn().unwrap();
        until("it has begun", || part.exists().then_some(()));
        signal(export.id(), end);
        let output = export.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("edge.jsonl is as it was"), "{error}");
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["edge.jsonl"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "an older one");
}

#[test]
fn row_an_archive_that_was_cut_is_told_so_and_that_nothing_was_changed() {
    let mut cluster = plan().start();
    let folder = cluster.folder().to_owned();
    for name in ["edge.jsonl", "edge.jsonl.gz"] {
        let archive = folder.join(name);
        cluster.json(&["datastore", "export", archive.to_str().unwrap()]);
        let whole = fs::read(&archive).unwrap();
        fs::write(&archive, &whole[..whole.len() * 2 / 3]).unwrap();
    }
    cluster.stop();
    for name in ["edge.jsonl", "edge.jsonl.gz"] {
        let refused = cluster.run(&["datastore", "import", "--replace", folder.join(name).to_str().unwrap()]);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{error}");
        assert!(error.contains("nothing was changed: ") && error.contains("it was cut off"), "{error}");
    }
}
