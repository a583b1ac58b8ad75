//! The command line, as a person and as a script use it.

use std::fs::Permissions;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use protoplex_testkit::ports::Port;

use crate::{noise, plan, start};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn protoplex(arguments: &[&str]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_protoplex"));
    let output = command.args(arguments).current_dir(folder.path()).output().unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn row_a_bad_configuration_is_refused_with_file_line_and_suggestion() {
    let cases = [
        (
            "[proxy]\nhtpp = [\"127.0.0.1:0\"]\n",
            "protoplex.toml:2: unknown key \"htpp\", did you mean \"http\"?",
        ),
        ("data = 1\n", "protoplex.toml:1:"),
        ("[proxy\n", "protoplex.toml:1:"),
        (
            "\nuser = \"no-such-user\"\n",
            "protoplex.toml:2: user: there is no user \"no-such-user\" on this machine",
        ),
        (
            "user = \"nobody\"\ngroup = \"no-such-group\"\n",
            "protoplex.toml:2: group: there is no group \"no-such-group\" on this machine",
        ),
        ("group = \"nogroup\"\n", "protoplex.toml:1: group: is only for a `user`, which is not given"),
        ("[live]\nchildren = 0\nhistory_count = 1\n", "live.history_count"),
        (
            "[proxy]\ntrusted_proxies = [\"10.0.0.0/8\", \"10.0.0.0/33\"]\n",
            "protoplex.toml:2: proxy.trusted_proxies.1: \"10.0.0.0/33\" is no network",
        ),
        (
            "[fileserver]\nproxy_protocol = { from = [\"nlb\"] }\n",
            "protoplex.toml:2: fileserver.proxy_protocol.from.0: \"nlb\" is no network",
        ),
        (
            "[meta]\nproxy = \"0.0.0.0:8053\"\n",
            "protoplex.toml:2: meta.proxy: 0.0.0.0:8053 could be reached from outside: use a loopback address, or \
             meta.exposed = true",
        ),
        (
            "[proxy]\nhttp = [\"127.0.0.1:7000\"]\nhttps = [\"127.0.0.1:0\", \"127.0.0.1:7000\"]\n",
            "protoplex.toml:3: proxy.https.1: 127.0.0.1:7000 is the address of proxy.http, too",
        ),
        (
            "[fileserver]\nhttp = [\"127.0.0.1:8054\"]\n",
            "protoplex.toml:2: fileserver.http.0: 127.0.0.1:8054 is the address of meta.fileserver, too",
        ),
    ];
    for (file, says) in cases {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("protoplex.toml"), file).unwrap();
        for arguments in [&["check"][..], &["up"], &["proxy"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_protoplex"));
            let output = command.args(arguments).current_dir(folder.path()).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{file} {arguments:?}");
            assert!(text(&output.stderr).contains(says), "{says} in {}", text(&output.stderr));
        }
    }
    assert_eq!(protoplex(&["check"]).0, Some(0), "the defaults are good");
}

#[test]
fn check_tells_every_mistake_and_scripts_get_it_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.toml");
    let text =
        "[proxy]\nhtpp = []\nchildren = 0\n\n[log]\nformat = \"xml\"\nlevel = \"loud\"\nmax_bytes = 9\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let (code, _, error) = protoplex(&["check", file]);
    assert_eq!(code, Some(2));
    for mistake in [
        "edge.toml:2: unknown key",
        "edge.toml:3: proxy.children",
        "edge.toml:6: unknown value",
        "edge.toml:7: log.level: the log level \"loud\" can't be understood",
        "edge.toml:8: log.max_bytes: must be 0, which is no limit, or at least 4096",
    ] {
        assert!(error.contains(mistake), "{mistake} in {error}");
    }
    let (code, answer, _) = protoplex(&["--json", "check", file]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((code, answer["ok"].as_bool()), (Some(2), Some(false)));
    assert_eq!(answer["mistakes"].as_array().unwrap().len(), 5, "{answer}");
}

#[test]
fn what_can_not_be_meant_is_exit_code_2_with_advice() {
    let here = tempfile::tempdir().unwrap();
    let here = here.path().to_str().unwrap();
    let cases = [
        (&["check", "--set", "nonsense"][..], "KEY=VALUE"),
        (&["check", "--set", "a b=1"], "KEY=VALUE"),
        (&["route", "localhost:8080"], "http://"),
        (&["join", "--pool", "a b", "--backend", "http://127.0.0.1:1"], "pool"),
        (&["join", "--pool", "a", "--backend", "http://127.0.0.1:1/path"], "without a path"),
        (&["token", "create", "--uses", "0"], "--uses"),
        (&["token", "create", "--quota", "0"], "more than 0"),
        (&["token", "create", "--expires", "0s"], "from 1s"),
        (&["token", "create", "--expires", "5"], "unit of time"),
        (&["deploy", "/nonexistent"], "is no folder"),
        (&["route", "http://localhost/", "-H", "no header"], "NAME: VALUE"),
        (&["token", "create", "--path", "files"], "did you mean /files?"),
        (&["upload", "--token", "x", here, "http://localhost/"], "is a folder"),
        (&["upload", "--token", "x", "a", "b", "http://localhost/one"], "URL that ends in /"),
        (&["upload", "--token", "x", "a", "localhost"], "write for example http://"),
        (&["up", "--seed", "10.0.0.1:8050"], "seed.listen"),
        (&["up", "--set", "seed_address=10.0.0.1:8050"], "seed.listen"),
        (&["check", "--set", "datastore.listen=127.0.0.1:0"], "datastore.listen: needs a port"),
        (&["check", "--set", "seed.listen=0.0.0.0:8050"], "seed.datastore: must be given"),
        (&["check", "--set", "seed_address=bad host:x"], "seed_address: \"bad host:x\" is no HOST:PORT"),
        (&["seed", "--children", "2"], "--children"),
        (&["stop"], "<NODE[:CHILD]>..."),
        (&["stop", "--now"], "<NODE[:CHILD]>..."),
        (&["stop", "--all", "proxy-1"], "cannot be used with"),
        (&["tail", "proxy-1:x"], "NODE:CHILD"),
        (&["datastore", "import", "/nonexistent"], "can't read /nonexistent: No such file"),
        (&["datastore", "export", "/nonexistent/x"], "can't write /nonexistent/x: No such file"),
        (&["enrol", "x", "--token-file", "/nonexistent"], "can't read /nonexistent: No such file"),
        (&["upload", "--token", "x", "/nonexistent", "http://localhost/"], "can't read /nonexistent"),
        (&["--credentials", "/nonexistent", "status"], "no credentials in /nonexistent"),
        (&["apply", "/nonexistent"], "/nonexistent: No such file"),
        (&["tail", "-l", "loud"], "error, warn, info, debug, trace"),
        (&["tail", "-n", "10001"], "10001 is not in"),
    ];
    for (arguments, says) in cases {
        let (code, _, error) = protoplex(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert!(error.contains(says), "{says} in {error}");
    }
}

#[test]
fn errors_are_a_line_of_json_for_scripts() {
    for (arguments, code, says) in [
        (&["--json", "status"][..], 3, "no cluster identity"),
        (&["--json", "stop"], 2, "<NODE[:CHILD]>..."),
        (&["enrol", "x", "--json"], 2, "name a join token"),
        (&["--json", "--set", "proxy.childrn=1", "status"], 2, "did you mean"),
    ] {
        let (exit, printed, error) = protoplex(arguments);
        assert_eq!((exit, printed.as_str(), error.lines().count()), (Some(code), "", 1), "{error}");
        let error: serde_json::Value = serde_json::from_str(&error).unwrap();
        assert_eq!(error["error"]["exit_code"], code);
        assert!(error["error"]["message"].as_str().unwrap().contains(says), "{error}");
    }
    let (code, help, _) = protoplex(&["--json", "stop", "--help"]);
    assert!(code == Some(0) && help.contains("--all"), "{help}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_protoplex"));
    command.args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn row_a_seed_that_is_no_address_and_a_file_of_handlers_are_told_as_what_they_are() {
    let (code, _, error) = protoplex(&["--seed", "xx", "status"]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("\"xx\", of --seed or PROTOPLEX_SEED, is no HOST:PORT"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.toml");
    let text = "[[handler]]\nname = \"a\"\n[proxy]\nhttp = [\"nowhere\"]\n[seed]\nlisten = \"here\"\n";
    std::fs::write(&file, text).unwrap();
    let (code, _, error) = protoplex(&["check", file.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("`protoplex apply FILE --dry-run`"), "{error}");
    let mistakes: Vec<_> = error.lines().filter_map(|line| line.split_once("edge.toml:")).collect();
    let begins =
        ["1: unknown key \"handler\"", "4: proxy.http: invalid socket", "6: seed.listen: invalid socket"];
    for ((_, mistake), begin) in mistakes.iter().zip(begins) {
        assert!(mistake.starts_with(begin), "{begin}: {error}");
    }
    assert_eq!(mistakes.len(), begins.len(), "{error}");
}

#[test]
fn row_a_port_that_is_taken_is_named_before_anything_runs() {
    let port = Port::take();
    let _taken = TcpListener::bind(port.address()).unwrap();
    let setting = format!("proxy.http=[\"{}\"]", port.address());
    let (code, _, error) = protoplex(&["up", "--set", &setting]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains(&port.address()) && error.contains("in use"), "{error}");
}

#[test]
fn row_up_says_why_a_node_does_not_become_ready() {
    let mut cluster = start();
    cluster.stop();
    let newer = "import sqlite3, sys\n\
                 with sqlite3.connect(sys.argv[1]) as database:\n    \
                 database.execute(\"INSERT INTO _sqlx_migrations (version, description, success, checksum, \
                 execution_time) VALUES (9999, 'from the future', 1, x'00', 0)\")";
    let file = cluster.data().join("datastore/protoplex.db");
    assert!(Command::new("python3").args(["-c", newer]).arg(&file).status().unwrap().success());
    let [seed, datastore] = [Port::take(), Port::take()];
    let mut up = cluster.command(&["up"]);
    up.args(["--set", &format!("seed.listen={}", seed.address())]);
    up.args(["--set", &format!("datastore.listen={}", datastore.address())]);
    for setting in
        ["proxy.http=[\"127.0.0.1:0\"]", "proxy.https=[]", "fileserver.http=[]", "fileserver.https=[]"]
    {
        up.args(["--set", setting]);
    }
    for kind in ["seed", "datastore", "proxy", "fileserver", "live"] {
        up.args(["--set", &format!("meta.{kind}=127.0.0.1:0")]);
    }
    let output = up.output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in
        ["datastore-1 did not become ready: ", "its schema is version 9999", "Start the newer version"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn row_the_data_directory_of_a_running_cluster_is_refused() {
    let cluster = start();
    for arguments in [&["up"][..], &["proxy"], &["seed"]] {
        let output = cluster.run(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains("already running") && error.contains("pid"), "{error}");
    }
}

#[test]
fn a_cluster_that_is_not_there_is_exit_code_3_with_advice() {
    let (code, _, error) = protoplex(&["status"]);
    assert_eq!(code, Some(3));
    assert!(error.contains("--data DIR") && error.contains("--credentials DIR"), "{error}");
    assert!(!error.contains("--join"), "{error}");
}

#[test]
fn row_an_identity_that_this_user_can_not_read_is_not_taken_for_none() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can become somebody else");
        return;
    }
    // Both open, as the binary may be in a folder of root's alone.
    let open = || {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        folder
    };
    let (folder, copy) = (open(), open());
    let binary = copy.path().join("protoplex");
    std::fs::copy(env!("CARGO_BIN_EXE_protoplex"), &binary).unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    assert_eq!(protoplex(&["--data", data, "init"]).0, Some(0));
    for arguments in [&["handler", "list"][..], &["status"], &["restart"]] {
        let mut command = Command::new(&binary);
        command.args(["--data", data]).args(arguments).current_dir(folder.path()).uid(65534).gid(65534);
        let output = command.output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains("Permission denied") && error.contains(data), "{arguments:?}: {error}");
        assert!(!error.contains("no cluster identity"), "{arguments:?}: {error}");
    }
}

#[test]
fn a_seed_that_takes_connections_and_says_nothing_is_exit_code_3_in_time() {
    let cluster = start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let output = cluster.run(&["--seed", &address, "status"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("no seed answers") && error.contains("did not speak TLS"), "{error}");
}

#[test]
fn row_variables_that_are_empty_or_that_nobody_reads() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_protoplex"));
        command.args(arguments).envs(variables.iter().copied()).current_dir(folder.path());
        let output = command.output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let names = ["CONFIG", "DATA", "SEED", "CREDENTIALS", "JOIN", "JOIN_FILE", "TOKEN", "PROXY__HTTP"];
    let names = names.map(|name| format!("PROTOPLEX_{name}"));
    let empty: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    assert_eq!(run(&["check"], &empty), run(&["check"], &[]));
    let (code, _, error) = run(&["enrol", "x"], &empty);
    assert!(code == Some(2) && error.contains("name a join token"), "{error}");
    let (code, _, error) = run(&["status"], &empty);
    assert!(code == Some(3) && error.contains("protoplex-data/cluster"), "{error}");

    let (code, _, error) = run(&["status"], &[("PROTOPLEX_DATA", "elsewhere")]);
    assert!(code == Some(3) && error.contains("elsewhere/cluster"), "{error}");

    let slips = [("PROTOPLEX_PROXY_CHILDREN", "4"), ("PROTOPLEX_FOO", "4")];
    let (code, _, error) = run(&["check"], &slips);
    assert_eq!(code, Some(0));
    assert!(error.contains("did you mean PROTOPLEX_PROXY__CHILDREN?"), "{error}");
    assert!(error.contains("PROTOPLEX_FOO is not read"), "{error}");
    let answer: serde_json::Value = serde_json::from_str(&run(&["--json", "check"], &slips).1).unwrap();
    assert_eq!(answer["warnings"].as_array().unwrap().len(), 2, "{answer}");
}

#[test]
fn help_and_manual_teach_every_command() {
    let (code, help, _) = protoplex(&["--help"]);
    assert_eq!(code, Some(0));
    for command in [
        "up",
        "seed",
        "proxy",
        "fileserver",
        "live",
        "datastore",
        "join",
        "status",
        "tail",
        "check",
        "handler",
        "apply",
        "route",
        "deploy",
        "token",
        "upload",
        "files",
        "init",
        "join-token",
        "enrol",
        "operator",
        "node",
    ] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{command} "))),
            "{command} in {help}"
        );
        assert_eq!(protoplex(&[command, "--help"]).0, Some(0), "{command}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(protoplex(&["man", folder.path().to_str().unwrap()]).0, Some(0));
    let page = std::fs::read_to_string(folder.path().join("protoplex-handler-add.1")).unwrap();
    assert!(page.contains("placement"), "{page}");
    assert!(protoplex(&["completions", "bash"]).1.contains("_protoplex"));
}

#[test]
fn upload_prints_what_was_stored_and_refusals_in_words() {
    let cluster = start();
    let file = cluster.folder().join("some file.bin");
    std::fs::File::create(&file).unwrap().write_all(&noise(7, 100_000)).unwrap();
    let url = format!("{}/files/", cluster.http());
    let output = cluster.run(&["upload", "--token", cluster.token(), file.to_str().unwrap(), &url]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("/files/some%20file.bin"), "{}", text(&output.stdout));
    let files = cluster.json(&["files", "list"]);
    assert_eq!(files[0]["path"], "/files/some file.bin");

    let refused = cluster.run(&["upload", "--token", "nonsense", file.to_str().unwrap(), &url]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("token"), "{}", text(&refused.stderr));
}

#[test]
fn a_folder_is_deployed_whole_and_served_at_once() {
    let cluster = start();
    let app = cluster.folder().join("app");
    std::fs::create_dir_all(app.join("js")).unwrap();
    std::fs::write(app.join("index.html"), "<h1>mine</h1>").unwrap();
    std::fs::write(app.join("js/app.js"), "1").unwrap();
    let deployed = cluster.json(&["deploy", app.to_str().unwrap()]);
    assert_eq!(deployed["assets"], 2);
    protoplex_testkit::until("both children serve the new build", || {
        let answers = [(); 8].map(|()| crate::get(&format!("{}/", cluster.http()), &[]).text());
        answers.iter().all(|text| text == "<h1>mine</h1>").then_some(())
    });
    assert_eq!(
        crate::get(&format!("{}/app.css", cluster.http()), &[]).status,
        404,
        "the old build is gone whole"
    );
}

#[test]
fn status_and_route_explain_what_runs_where() {
    let cluster = plan().start();
    let status = text(&cluster.run(&["status"]).stdout);
    for line in ["proxy-1:0", "fileserver-1:1", "live-1:1", "RUNNING", "Pools", "leading"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    let way = cluster.json(&["route", &format!("{}/files/x?y=1", cluster.http())]);
    assert_eq!((way["handler"].as_str(), way["key"].as_str()), (Some("files"), Some("/files/x")));
    let none = cluster.json(&["route", &format!("{}/.well-known/mercure", cluster.http())]);
    assert!(none["why"].as_str().unwrap().contains("400"), "{none}");
    let dots = cluster.json(&["route", &format!("{}/room/../x", cluster.http())]);
    assert!(dots["why"].as_str().unwrap().contains("400"), "{dots}");
    cluster.json(&["handler", "add", "void", "--path", "/void", "--key", "k", "--pool", "nobody"]);
    cluster.json(&[
        "handler",
        "add",
        "host",
        "--host",
        "x.example",
        "--path",
        "/{*all}",
        "--key",
        "k",
        "--pool",
        "live",
    ]);
    cluster.json(&["handler", "remove", "files"]);
    let void = cluster.json(&["route", &format!("{}/void", cluster.http())]);
    let owned = cluster.json(&["route", "http://x.example/y"]);
    let nowhere = cluster.json(&["route", &format!("{}/files/x", cluster.http())]);
    for (way, outcome, status) in [
        (&dots, "bad_request", Some(400)),
        (&none, "bad_request", Some(400)),
        (&nowhere, "not_found", Some(404)),
        (&void, "no_member", Some(503)),
        (&owned, "relayed", None),
    ] {
        assert_eq!((way["outcome"].as_str(), way["status"].as_u64()), (Some(outcome), status), "{way}");
    }
}

#[test]
fn a_handler_that_can_not_work_is_refused_in_words() {
    let cluster = start();
    let refused = [
        (&["handler", "add", "x", "--path", "no-slash", "--key", "k", "--pool", "p"][..], 2, "/"),
        (&["handler", "add", "x", "--path", "/a/{b}", "--key", "{c}", "--pool", "p"], 2, "c"),
        (&["handler", "add", "files", "--path", "/other", "--key", "k", "--pool", "p"], 1, "files"),
        (
            &["handler", "add", "x", "--path", "/x", "--pool", "p"],
            2,
            "--key is needed, or --placement spread",
        ),
    ];
    for (arguments, code, says) in refused {
        let output = cluster.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(text(&output.stderr).contains(says), "{says} in {}", text(&output.stderr));
    }
}
