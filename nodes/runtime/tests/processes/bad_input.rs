//! What operators get wrong, row by row: what goes in, what comes out, and that nothing was lost by it. Each row is played
//! while clients ask, of whom none may fail, and leaves the node as it was.
//!
//! | goes in | comes out |
//! | --- | --- |
//! | a child that there isn't | 404, and which there are |
//! | a command to what is in that state already | 200, and that nothing changed |
//! | a command that means another node | 421, and who this is |
//! | a command that there isn't, or by GET | 404, 405 |
//! | a command of nobody | 403 (from elsewhere, without a certificate or token, 401 and 400: `meta_tls`) |
//! | a second node of the name on the data directory | exit code 2, and who has it |
//! | a stale pid file, of a process that lives and is another | the node starts |
//! | a full disk under the log | requests go on, lines are counted (`logs`) |

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::rig::{Arguments, Client, Node};
use super::{Load, pids};

/// What a node is: not how long, how often or how loaded.
fn state(node: &Node) -> Value {
    let status = node.status();
    let children = status["children"].as_array().unwrap();
    let children: Vec<_> =
        children.iter().map(|child| json!([child["state"], child["pid"], child["restarts"]])).collect();
    json!([status["ready"], status["draining"], status["addresses"], status["pid"], children])
}

/// Does something wrong to a node that is asked meanwhile.
fn unharmed(node: &Node, wrong: impl FnOnce()) {
    let before = state(node);
    assert_eq!(Load::during(node, |_| wrong()), 0, "a request was lost");
    assert_eq!(state(node), before);
}

#[test]
fn row_commands_that_can_not_be_meant_change_nothing() {
    let node = Node::start(&Arguments::default());
    unharmed(&node, || {
        for verb in ["start", "stop", "restart", "drain"] {
            for (target, status, says) in [
                (json!({"child": 2}), 404, "there is no child 2: the node has children 0 to 1"),
                (json!({"child": -1}), 400, "child"),
                (json!({"child": "x"}), 400, "child"),
                (json!({"chidl": 0}), 400, "do you mean child?"),
            ] {
                let (code, said) = node.command(verb, target.clone());
                let said = said["detail"].as_str().map_or_else(|| said.to_string(), str::to_owned);
                assert!(code == status && said.contains(says), "{verb} {target}: {code} {said}");
            }
            for (query, status) in [("node=fixture-2", 421), ("nod=fixture-1", 400)] {
                assert_eq!(node.command(&format!("{verb}?{query}"), json!({})).0, status);
            }
            assert_eq!(node.status_of("POST", &format!("/rpc/{verb}"), ""), 403, "of nobody");
            assert_eq!(node.status_of("GET", &format!("/rpc/{verb}"), "Protoplex-Operator: x\r\n"), 405);
        }
        assert_eq!(node.status_of("POST", "/rpc/restrat", "Protoplex-Operator: x\r\n"), 404);
        assert_eq!(node.command("change_loglevel", json!({"level": "loud"})).0, 400);
    });
}

#[test]
fn row_a_command_to_what_is_in_that_state_already_says_so() {
    let node = Node::start(&Arguments::default());
    let unchanged = (200, json!({"changed": false}));
    unharmed(&node, || {
        assert_eq!(node.command("start", json!({})), unchanged);
        assert_eq!(node.command("start", json!({"child": 1})), unchanged);
        assert_eq!(node.command("reload", json!({})), unchanged);
    });
    for (verb, state) in [("stop", "STOPPED"), ("drain", "EXITED")] {
        assert_eq!(node.command("start", json!({"child": 1})).0, 200);
        assert_eq!(node.command(verb, json!({"child": 1})), (200, json!({"changed": true})));
        unharmed(&node, || assert_eq!(node.command(verb, json!({"child": 1})), unchanged));
        assert_eq!(node.child(1).state, state);
    }
}

#[test]
fn row_a_second_node_of_the_name_is_refused_and_the_first_one_does_not_notice() {
    let node = Node::start(&Arguments::default());
    unharmed(&node, || {
        let (code, told) = Node::refused(&Arguments { data: Some(node.data()), ..Arguments::default() });
        assert_eq!(code, Some(2));
        let says = format!("fixture-1 is already running on {} (pid {})", node.data().display(), node.pid());
        assert!(told.starts_with(&says), "{told}");
    });
}

#[test]
fn row_a_stale_pid_file_is_not_believed() {
    let data = tempfile::tempdir().unwrap();
    let run = data.path().join("run");
    std::fs::create_dir(&run).unwrap();
    // Of this very process, which lives, and of a port at which something listens.
    let pid = std::process::id();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = other.local_addr().unwrap();
    std::fs::write(run.join("fixture-1.lock"), format!("{pid}\n")).unwrap();
    let stale = json!({
        "node": "fixture-1", "kind": "fixture", "pid": pid, "version": "0", "started_at_ms": 1,
        "addresses": [{"name": "http", "address": address}],
    });
    std::fs::write(run.join("fixture-1.json"), stale.to_string()).unwrap();
    assert!(protoplex_runtime::running::list(data.path()).unwrap().is_empty(), "nobody runs");
    let node = Node::start(&Arguments { data: Some(data.path().to_owned()), ..Arguments::default() });
    assert_ne!(node.http(), address);
    assert!(pids(&node).contains(&Client::connect(node.http()).ask("who").unwrap().1));
    assert_eq!(std::fs::read_to_string(run.join("fixture-1.lock")).unwrap(), format!("{}\n", node.pid()));
}
