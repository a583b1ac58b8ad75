//! Names in a data directory.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn running(node: &str) -> Running {
    let address =
        Address { name: "http".to_owned(), child: None, address: "127.0.0.1:8080".parse().unwrap() };
    Running {
        node: node.to_owned(),
        kind: "proxy".to_owned(),
        pid: std::process::id(),
        version: "1".to_owned(),
        started_at_ms: 7,
        children: 2,
        addresses: vec![address],
    }
}

#[test]
fn a_name_is_had_by_one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let first = claim(&data, "proxy-1").unwrap();
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    let told = format!(
        "proxy-1 is already running on {} (pid {}): stop it first, or give this one another --data",
        data.display(),
        std::process::id()
    );
    assert_eq!(claim(&data, "proxy-1").unwrap_err().to_string(), told);
    assert_eq!(probe(&data, "proxy-1").unwrap().to_string(), told);
    claim(&data, "proxy-2").expect("another name is free");
    drop(first);
    assert!(probe(&data, "proxy-1").is_none());
    claim(&data, "proxy-1").expect("it is free again");
}

#[test]
fn only_nodes_that_run_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(list(folder.path()).unwrap(), []);
    let second = claim(folder.path(), "b").unwrap();
    let first = claim(folder.path(), "a").unwrap();
    assert_eq!(list(folder.path()).unwrap(), [], "neither listens yet");
    second.announce(&running("b")).unwrap();
    first.announce(&running("a")).unwrap();
    assert_eq!(list(folder.path()).unwrap(), [running("a"), running("b")]);
    assert_eq!(list(folder.path()).unwrap()[0].address("http"), Some("127.0.0.1:8080".parse().unwrap()));
    drop(second);
    assert_eq!(list(folder.path()).unwrap(), [running("a")]);
    assert!(!folder.path().join("run/b.json").exists());
}

#[test]
fn what_a_killed_node_has_left_is_not_believed_but_noted() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!claim(folder.path(), "a").unwrap().is_orphaned());
    fs::write(folder.path().join("run/a.json"), serde_json::to_string(&running("a")).unwrap()).unwrap();
    assert_eq!(list(folder.path()).unwrap(), []);
    assert!(claim(folder.path(), "a").unwrap().is_orphaned());
}

#[test]
fn a_data_directory_that_is_none_is_refused() {
    let told = claim(Path::new("/dev/null"), "a").unwrap_err().to_string();
    assert_eq!(told, "/dev/null/run/a.lock: Not a directory (os error 20)");
}

#[test]
fn a_node_that_is_started_again_is_the_same_and_a_copy_of_its_data_directory_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let claim = |data: &Path| claim(data, "live-1").unwrap().instance().unwrap().id;
    let first = claim(&here);
    assert_eq!(claim(&here), first);
    let other = super::claim(&here, "live-2").unwrap();
    assert_ne!(other.instance().unwrap().id, first, "another node");

    fs::create_dir_all(there.join("run")).unwrap();
    fs::copy(here.join("run/live-1.instance"), there.join("run/live-1.instance")).unwrap();
    assert_ne!(claim(&there), first);
    assert_eq!(claim(&here), first, "the copy changes nothing for it");

    for text in ["", "\n", "torn", "x y z", "\u{0}"] {
        fs::write(here.join("run/live-1.instance"), text).unwrap();
        assert_ne!(claim(&here), first, "{text:?}");
    }
}

#[test]
fn an_orphaned_child_that_goes_on_makes_the_next_process_another_instance() {
    let folder = tempfile::tempdir().unwrap();
    let parent = claim(folder.path(), "live-1").unwrap();
    let Instance { id: first, hold: child } = parent.instance().unwrap();
    drop(parent);
    let next = claim(folder.path(), "live-1").unwrap();
    let second = next.instance().unwrap();
    assert_ne!(second.id, first);
    let id = second.id.clone();
    drop((child, second, next));
    assert_eq!(claim(folder.path(), "live-1").unwrap().instance().unwrap().id, id);
}
