//! Connections go to all children of a node alike, as its status page shows.

use std::net::TcpStream;

use protoplex_testkit::cluster::Cluster;
use protoplex_testkit::until;
use serde_json::Value;

use crate::{get, start};

/// Fewer than by chance go to one of two children: less than a quarter never do.
const CONNECTIONS: u64 = 400;

/// What the status page of the proxy shows of each child.
fn shown(cluster: &Cluster, detail: &str) -> Vec<u64> {
    let folder = cluster.data().join("run");
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|file| file.path());
    let told = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let nodes = told.map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap());
    let proxy = nodes.into_iter().find(|node: &Value| node["kind"] == "proxy").unwrap();
    let addresses = proxy["addresses"].as_array().unwrap();
    let meta = addresses.iter().find(|address| address["name"] == "meta").unwrap();
    let page = get(&format!("http://{}/status", meta["address"].as_str().unwrap()), &[]);
    let page: Value = serde_json::from_str(&page.text()).unwrap();
    let children = page["children"].as_array().unwrap();
    children.iter().map(|child| child["details"][detail].as_u64().unwrap_or_default()).collect()
}

#[test]
fn every_child_gets_its_share_of_the_connections_and_shows_it() {
    let cluster = start();
    let address = cluster.http().strip_prefix("http://").unwrap();
    let before = shown(&cluster, "accepted");
    let held: Vec<TcpStream> = (0..CONNECTIONS).map(|_| TcpStream::connect(address).unwrap()).collect();
    let open = until("all connections are shown", || {
        let open = shown(&cluster, "connections");
        (open.iter().sum::<u64>() >= CONNECTIONS).then_some(open)
    });
    assert!(open.len() == 2 && open.iter().all(|share| *share >= CONNECTIONS / 4), "{open:?}");
    drop(held);
    until("none is left", || (shown(&cluster, "connections").iter().sum::<u64>() == 0).then_some(()));
    let accepted = shown(&cluster, "accepted");
    for ((accepted, before), open) in accepted.iter().zip(before).zip(open) {
        assert!(*accepted >= before.max(open), "{accepted}, {before} before, {open} open");
    }
    assert!(accepted.iter().sum::<u64>() >= CONNECTIONS);
}
