//! A cluster whose structured data is in a real PostgreSQL server, which goes away.

use std::fs;

use protoplex_testkit::cluster::Cluster;
use protoplex_testkit::postgres::{PASSWORD, Server};
use protoplex_testkit::until;

use crate::{get, plan, put};

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
    assert!(bench.is_served("/files/before"), "what fileservers know goes on");
    let refused = bench.upload("/files/meanwhile");
    assert!(matches!(refused, 502..=504), "{refused}");

    bench.server.resume();
    until("the datastore is ready", || (get(&ready, &[]).status == 200).then_some(()));
    until("an upload is taken", || (bench.upload("/files/after") == 201).then_some(()));
    assert!(bench.is_served("/files/before") && bench.is_served("/files/after"));
    assert_eq!(bench.lines_with("the database is away"), 1, "{}", bench.cluster.logs());
    assert_eq!(bench.lines_with("the database is back"), 1);
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
        let checked = std::process::Command::new(env!("CARGO_BIN_EXE_protoplex"))
            .arg("check")
            .arg(&file)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(checked.status.code(), Some(2), "{told}");
        assert!(told.contains(why) && !told.contains("hush"), "{told}");
    }
}
