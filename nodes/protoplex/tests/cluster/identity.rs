//! Who is in the cluster: machines that join with a token, certificates that are renewed, and those that count no more.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use protoplex_testkit::cluster::{Cluster, signal};
use protoplex_testkit::curl::curl;
use protoplex_testkit::ports::Port;
use protoplex_testkit::until;
use protoplex_wire::identity::Identity;
use protoplex_wire::join_token::JoinToken;
use rustix::process::Signal;
use serde_json::Value;

use crate::{plan, start};

/// A process of another machine, killed when this is dropped.
struct Elsewhere {
    process: Child,
    output: PathBuf,
}

impl Elsewhere {
    /// Runs the binary in a folder of its own, with what it says in a file.
    fn start(folder: &Path, name: &str, arguments: &[&str]) -> Self {
        let output = folder.join(format!("{name}.out"));
        let file = File::create(&output).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_protoplex"))
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { process, output }
    }

    fn says(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn seed(cluster: &Cluster) -> String {
    cluster.json(&["status"])["seeds"][0]["address"].as_str().unwrap().to_owned()
}

fn join_token(cluster: &Cluster, flags: &[&str]) -> String {
    let created = cluster.json(&[&["join-token", "create"], flags].concat());
    created["token"].as_str().unwrap().to_owned()
}

/// A command of somebody who is not on the machine of the cluster.
fn stranger(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_protoplex"));
    command.args(arguments).current_dir(folder).output().unwrap()
}

fn error_of(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A proxy on a machine of its own.
struct Proxy {
    arguments: Vec<String>,
    data: PathBuf,
    http: Port,
    meta: Port,
}

impl Proxy {
    fn new(cluster: &Cluster, seed: &str) -> Self {
        let (data, http, meta) = (cluster.folder().join("m2"), Port::take(), Port::take());
        let public = format!("proxy.http=[\"{}\"]", http.address());
        let meta_address = format!("meta.proxy={}", meta.address());
        let arguments = [
            "--data",
            data.to_str().unwrap(),
            "--seed",
            seed,
            "proxy",
            "--node",
            "proxy-2",
            "--children",
            "1",
            "--set",
            &public,
            "--set",
            "proxy.https=[]",
            "--set",
            &meta_address,
        ];
        Self { arguments: arguments.map(str::to_owned).into(), data, http, meta }
    }

    fn start(&self, cluster: &Cluster, more: &[&str]) -> Elsewhere {
        let arguments: Vec<_> =
            self.arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Elsewhere::start(cluster.folder(), "proxy-2", &arguments)
    }

    fn certificate(&self) -> String {
        fs::read_to_string(self.data.join("cluster/nodes/proxy-2/cert.pem")).unwrap_or_default()
    }

    /// A request for a key that nobody has asked for yet.
    fn publish(&self, token: &str, topic: &str) -> u16 {
        let url = format!("http://{}/.well-known/mercure", self.http.address());
        let bearer = format!("Authorization: Bearer {token}");
        let (topic, data) = (format!("topic={topic}"), "data=x");
        curl(["-H", &bearer, "-d", &topic, "-d", data, "--max-time", "20", &url]).status
    }

    /// Status and text of a page of its meta port.
    fn page(&self, page: &str) -> (u16, String) {
        let answer = curl(["--max-time", "5", &format!("http://{}/{page}", self.meta.address())]);
        (answer.status, answer.text())
    }

    fn is_up(&self) -> Option<()> {
        let url = format!("http://{}/", self.http.address());
        (curl(["--max-time", "5", &url]).status == 200).then_some(())
    }
}

#[test]
fn another_machine_joins_with_a_token_and_needs_none_when_it_is_started_again() {
    let cluster = start();
    let proxy = Proxy::new(&cluster, &seed(&cluster));
    let alone = proxy.start(&cluster, &[]);
    until("without a token it ends", || alone.says().contains("join one with --seed").then_some(()));
    drop(alone);
    let token = join_token(&cluster, &["--kind", "proxy"]);
    let file = cluster.folder().join("token");
    fs::write(&file, &token).unwrap();
    let running = proxy.start(&cluster, &["--join-file", file.to_str().unwrap()]);
    until(&format!("it serves: {}", running.says()), || proxy.is_up());
    assert_eq!(cluster.node("proxy-2")["kind"], "proxy");
    for secret in ["ca.key", "live.key"] {
        assert!(!proxy.data.join("cluster").join(secret).exists(), "a proxy gets no {secret}");
    }
    running.kill();
    let again = proxy.start(&cluster, &[]);
    until(&format!("it serves again: {}", again.says()), || proxy.is_up());

    // Whoever comes under a name that is taken is refused, and takes no use of its token.
    let token = join_token(&cluster, &["--kind", "live"]);
    let data = cluster.folder().join("m3");
    let arguments = [
        "--data",
        data.to_str().unwrap(),
        "--seed",
        &seed(&cluster),
        "live",
        "--node",
        "live-1",
        "--join",
        &token,
    ];
    let refused = error_of(&stranger(cluster.folder(), &arguments));
    assert!(refused.contains("the name \"live-1\" is taken by one that is here"), "{refused}");
    let listed = cluster.json(&["join-token", "list"]);
    let used: Vec<_> = listed.as_array().unwrap().iter().map(|it| it["uses_taken"].as_u64()).collect();
    assert!(used.contains(&Some(0)) && used.contains(&Some(1)), "{listed}");
    let makers = listed.as_array().unwrap().iter().map(|it| it["created_by"].as_str().unwrap());
    makers.for_each(|maker| assert!(maker.contains('@'), "user and machine: {maker}"));
    // Its data directory is no operator's.
    let refused = error_of(&stranger(
        cluster.folder(),
        &["--data", proxy.data.to_str().unwrap(), "--seed", &seed(&cluster), "status"],
    ));
    assert!(refused.contains("--credentials DIR"), "{refused}");
}

#[test]
fn certificates_are_renewed_under_load_without_a_failed_request() {
    let cluster = plan().set("seed.certificate_life_s=6").start();
    let proxy = Proxy::new(&cluster, &seed(&cluster));
    let token = join_token(&cluster, &["--kind", "proxy"]);
    let running = proxy.start(&cluster, &["--join", &token]);
    until(&format!("it serves: {}", running.says()), || proxy.is_up());
    let publisher = cluster.json(&["token", "live", "--publish", "*"])["token"].as_str().unwrap().to_owned();
    let (mut seen, mut number) = (vec![proxy.certificate()], 0);
    until("three certificates later", || {
        number += 1;
        assert_eq!(proxy.publish(&publisher, &format!("t{number}")), 200, "{}", running.says());
        let now = proxy.certificate();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        (seen.len() > 3).then_some(())
    });
    // By now the first one is over: whoever connects anew does so with a later one.
    let pid = cluster.node("seed-1")["pid"].as_u64().unwrap();
    signal(u32::try_from(pid).unwrap(), Signal::KILL);
    until("another seed runs", || {
        let status: Value = serde_json::from_slice(&cluster.run(&["--json", "status"]).stdout).ok()?;
        let nodes = status["nodes"].as_array()?.clone();
        nodes.iter().find(|node| node["node"] == "proxy-2")?;
        (nodes.iter().find(|node| node["node"] == "seed-1")?["pid"].as_u64()? != pid).then_some(())
    });
    until("new keys have owners again", || (proxy.publish(&publisher, "after") == 200).then_some(()));
}

#[test]
fn row_a_token_that_opens_nothing_says_why() {
    let cluster = start();
    let seed = seed(&cluster);
    let folder = cluster.folder();
    let enrol =
        |name: &str, token: &str| stranger(folder, &["--seed", &seed, "enrol", name, "--token", token]);
    let backend = ["--kind", "backend", "--pool", "rooms"];
    let good = join_token(&cluster, &backend);
    assert!(enrol("first", &good).status.success());
    // Its owner may ask again, and who has seen the token may not: not under that name either.
    assert!(enrol("first", &good).status.success());
    fs::create_dir(folder.join("seen")).unwrap();
    let arguments = ["--seed", &seed, "enrol", "seen", "--node", "first", "--token", &good];
    let said = error_of(&stranger(folder, &arguments));
    assert!(said.contains("is used up: it was for one name"), "{said}");
    let [revoked, short] =
        [&[][..], &["--expires", "1s"]].map(|more| join_token(&cluster, &[&backend[..], more].concat()));
    let id = revoked.strip_prefix("pxj_").unwrap().split('.').next().unwrap();
    // Ids may begin with a hyphen.
    assert_eq!(cluster.json(&["join-token", "revoke", id])["revoked"], true);
    // Earlier versions have drawn such.
    let old = error_of(&cluster.run(&["join-token", "revoke", "-2Xl0"]));
    assert!(old.contains("-2Xl0") && !old.contains("unexpected argument"), "{old}");
    let listed = cluster.json(&["join-token", "list"]);
    let ends =
        listed.as_array().unwrap().iter().map(|it| it["expires_at_ms"].as_u64().unwrap()).min().unwrap();
    until("the short one is over", || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        (now > u128::from(ends)).then_some(())
    });
    let proxy = join_token(&cluster, &["--kind", "proxy"]);
    let other = start();
    let foreign = join_token(&other, &backend);
    let ours = good.rsplit_once('.').unwrap().1;
    let unknown = format!("{}.{ours}", foreign.rsplit_once('.').unwrap().0);
    for (token, says) in [
        (good.as_str(), "is used up: it was for one name"),
        (&revoked, "was revoked: ask for another one"),
        (&short, "s ago: ask for another one"),
        (&proxy, "is for a proxy, not for a backend"),
        (&foreign, "is of another cluster than the token"),
        (&unknown, "is unknown here, or its secret is wrong"),
        ("nonsense", "this is no join token"),
        (&good[..good.len() - 4], "this is no join token"),
    ] {
        let said = error_of(&enrol("second", token));
        assert!(said.contains(says), "{says} in {said}");
        assert!(!said.contains(token.split('.').nth(1).unwrap_or("\0")), "no secret is told: {said}");
    }
    // That is final: nobody tries again.
    let arguments = ["--data", "m4", "--seed", &seed, "proxy", "--join", &foreign, "--set", "proxy.https=[]"];
    let ports = ["--set", "proxy.http=[\"127.0.0.1:0\"]", "--set", "meta.proxy=127.0.0.1:0"];
    let refused = stranger(folder, &[&arguments[..], &ports].concat());
    let said = error_of(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("is of another cluster than the token") && !said.contains("trying again"),
        "{said}"
    );
    // Commands of the one are of no use for the other.
    let refused = other.run(&["--seed", &seed, "status"]);
    let said = error_of(&refused);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains("is of another cluster than this data directory"), "{said}");
    let refused = stranger(folder, &["--credentials", "nodir", "--seed", &seed, "status"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = error_of(&refused);
    assert!(said.contains("no credentials in nodir") && !said.contains("start the cluster"), "{said}");
    for (flags, says) in [
        (&["--kind", "backend"][..], "name at least one"),
        (&["--kind", "proxy", "--pool", "rooms"], "name none"),
        (&["--kind", "king"], "is no kind"),
    ] {
        let said = error_of(&cluster.run(&[&["join-token", "create"], flags].concat()));
        assert!(said.contains(says), "{says} in {said}");
    }
}

#[test]
fn a_server_that_has_enrolled_is_a_member_of_its_pools_and_nothing_else_until_it_is_revoked() {
    let cluster = start();
    let seed = seed(&cluster);
    let folder = cluster.folder();
    let token = join_token(&cluster, &["--kind", "backend", "--pool", "rooms"]);
    let enrolled = stranger(folder, &["--seed", &seed, "--json", "enrol", "rooms-1", "--token", &token]);
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let told: Value = serde_json::from_slice(&enrolled.stdout).unwrap();
    assert_eq!((told["name"].as_str(), told["kind"].as_str()), (Some("rooms-1"), Some("backend")));
    let of_it = ["--credentials", "rooms-1", "--seed", &seed];

    let refused = error_of(&stranger(folder, &[&of_it[..], &["status"]].concat()));
    assert!(refused.contains("rooms-1 is a backend, and such may not call Operator.Status"), "{refused}");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = format!("http://{}", server.local_addr().unwrap());
    let join = |pool: &'static str, more: &[&str]| {
        let arguments = [&of_it[..], &["join", "--pool", pool, "--backend", &backend], more].concat();
        Elsewhere::start(folder, pool, &arguments)
    };
    let wrong = join("chat", &[]);
    until("its pool is refused", || {
        let why = "it may not be a member of pool \"chat\": its certificate is for rooms";
        wrong.says().contains(why).then_some(())
    });
    drop(wrong);
    let wrong = join("rooms", &["--id", "rooms-2"]);
    until("its name is refused", || {
        wrong.says().contains("by its certificate it is \"rooms-1\"").then_some(())
    });
    drop(wrong);
    let right = join("rooms", &[]);
    until("it is a member", || right.says().contains("is a member of pool rooms").then_some(()));

    cluster.json(&["node", "revoke", "rooms-1"]);
    until("it is refused", || {
        right.says().contains("rooms-1 is revoked; an operator may readmit it").then_some(())
    });
    assert_eq!(cluster.json(&["node", "revoked"])[0]["name"], "rooms-1");
    let refused = error_of(&stranger(folder, &["--seed", &seed, "enrol", "rooms-1", "--renew"]));
    assert!(refused.contains("rooms-1 is revoked"), "{refused}");
    let another = join_token(&cluster, &["--kind", "backend", "--pool", "rooms"]);
    let refused = error_of(&stranger(folder, &["--seed", &seed, "enrol", "rooms-1", "--token", &another]));
    assert!(refused.contains("rooms-1 is revoked"), "{refused}");
    let before = right.says().matches("is a member of pool rooms").count();
    cluster.json(&["node", "readmit", "rooms-1"]);
    until("it is a member again", || {
        (right.says().matches("is a member of pool rooms").count() > before).then_some(())
    });
    let renewed = stranger(folder, &["--seed", &seed, "enrol", "rooms-1", "--renew"]);
    assert!(renewed.status.success(), "{}", String::from_utf8_lossy(&renewed.stderr));
}

#[test]
fn row_a_node_whose_name_is_taken_is_not_ready_and_says_why() {
    let cluster = start();
    let mut proxy = Proxy::new(&cluster, &seed(&cluster));
    // As somebody does who copies a machine.
    fs::create_dir_all(proxy.data.join("cluster")).unwrap();
    for file in fs::read_dir(cluster.data().join("cluster")).unwrap().flatten() {
        if file.path().is_file() {
            fs::copy(file.path(), proxy.data.join("cluster").join(file.file_name())).unwrap();
        }
    }
    let name = proxy.arguments.iter().position(|argument| argument == "proxy-2").unwrap();
    proxy.arguments[name] = "proxy-1".to_owned();
    let running = proxy.start(&cluster, &[]);
    until("its child runs", || proxy.page("status").1.contains("RUNNING").then_some(()));
    until(&format!("it is refused: {}", running.says()), || {
        let (status, text) = proxy.page("readyz");
        let why = "not ready\nrefused by the seed: the name \"proxy-1\" is taken by another instance";
        text.starts_with(why).then(|| assert_eq!(status, 503))
    });
    // Once the other one has gone the name is its own.
    cluster.json(&["drain", "proxy-1"]);
    until("it is ready", || (proxy.page("readyz") == (200, "ready\n".to_owned())).then_some(()));
}

#[test]
fn row_a_node_of_another_cluster_says_so_at_the_seed() {
    let cluster = start();
    let proxy = Proxy::new(&cluster, &seed(&cluster));
    let made = stranger(cluster.folder(), &["--data", proxy.data.to_str().unwrap(), "init"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let running = proxy.start(&cluster, &[]);
    let credentials = proxy.data.join("cluster");
    let why = format!("it is of another cluster than the credentials in {}", credentials.display());
    until("it says so", || running.says().contains(&why).then_some(()));
    let (_, status) = proxy.page("status");
    assert!(status.contains(&why), "{status}");
}

#[test]
fn people_have_credentials_of_their_own() {
    let cluster = start();
    let seed = seed(&cluster);
    let folder = cluster.folder();
    cluster.json(&["operator", "create", "ada"]);
    let of_ada = ["--credentials", "ada-credentials", "--seed", &seed];
    let ada = |command: &[&str]| stranger(folder, &[&of_ada[..], command].concat());
    assert!(ada(&["status"]).status.success());
    assert!(ada(&["token", "live", "--publish", "news"]).status.success());
    let again = error_of(&cluster.run(&["operator", "create", "ada"]));
    assert!(again.contains("is there already"), "{again}");
    let token = join_token(&cluster, &["--kind", "operator"]);
    let enrolled = stranger(folder, &["--seed", &seed, "operator", "enrol", "eve", "--token", &token]);
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    assert!(String::from_utf8_lossy(&enrolled.stdout).contains("the credentials of eve, an operator, until"));
    let another = join_token(&cluster, &["--kind", "operator"]);
    let arguments = ["--seed", &seed, "operator", "enrol", "l", "--node", "local", "--token", &another];
    for refused in [stranger(folder, &arguments), cluster.run(&["operator", "create", "local"])] {
        assert!(error_of(&refused).contains("is whoever has the authority's key"));
    }
    cluster.json(&["operator", "revoke", "ada"]);
    let refused = error_of(&ada(&["status"]));
    assert!(refused.contains("operator/ada is revoked; an operator may readmit it"), "{refused}");
    let eve = stranger(folder, &["--credentials", "eve", "--seed", &seed, "operator", "readmit", "ada"]);
    assert!(eve.status.success(), "{}", String::from_utf8_lossy(&eve.stderr));
    assert!(ada(&["status"]).status.success());
}

#[test]
fn credentials_that_were_made_short_are_renewed_short() {
    let cluster = start();
    let (seed, folder) = (seed(&cluster), cluster.folder());
    cluster.json(&["operator", "create", "eve", "--expires", "10m"]);
    let file = |name: &str| folder.join("eve-credentials").join(name).to_str().unwrap().to_owned();
    let is_short = |pem: &str| {
        let openssl =
            Command::new("openssl").args(["x509", "-noout", "-checkend", "660", "-in", pem]).output();
        openssl.unwrap().status.code() == Some(1)
    };
    let first = fs::read_to_string(file("cert.pem")).unwrap();
    let renewed = stranger(folder, &["--seed", &seed, "enrol", "eve-credentials", "--renew"]);
    assert!(renewed.status.success(), "{}", String::from_utf8_lossy(&renewed.stderr));
    assert!(fs::read_to_string(file("cert.pem")).unwrap() != first && is_short(&file("cert.pem")));

    let next = folder.join("next.pem").to_str().unwrap().to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
    let (there, url) = (format!("::{seed}"), "https://service.protoplex.internal/v1/certificate");
    let over_http =
        ["--cacert", &ca, "--cert", &cert, "--key", &key, "--connect-to", &there, "-X", "POST", url];
    let answer = curl(over_http);
    assert_eq!(answer.status, 200, "{}", answer.text());
    fs::write(&next, answer.body).unwrap();
    assert!(is_short(&next));
}

#[test]
fn row_nobody_revokes_whom_nobody_could_readmit() {
    let cluster = start();
    let seed = seed(&cluster);
    let folder = cluster.folder();
    cluster.json(&["operator", "create", "ada"]);
    let ada = |command: &[&str]| {
        stranger(folder, &[&["--credentials", "ada-credentials", "--seed", &seed], command].concat())
    };
    for (refused, says) in [
        (
            cluster.run(&["node", "revoke", "seed-1"]),
            "hand over to another one first (protoplex drain seed-1)",
        ),
        (cluster.run(&["operator", "revoke", "local"]), "whoever has cluster/ca.key"),
        (ada(&["operator", "revoke", "local"]), "whoever has cluster/ca.key"),
        (ada(&["operator", "revoke", "ada"]), "operator/ada is your own name"),
    ] {
        assert_eq!(refused.status.code(), Some(1));
        let said = error_of(&refused);
        assert!(said.contains(says) && said.contains("Nothing was changed"), "{says} in {said}");
    }
    assert_eq!(cluster.json(&["node", "revoked"]), Value::Array(Vec::new()));
    for none in
        [&["node", "revoke", "x y"][..], &["operator", "revoke", "Ada"], &["operator", "create", "x y"]]
    {
        let refused = cluster.run(none);
        let said = error_of(&refused);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("name \"") && said.contains("use 1 to") && !said.contains("pool"), "{said}");
    }
    let says = |command: &[&str]| String::from_utf8(cluster.run(command).stdout).unwrap();
    for (slip, meant) in
        [("proxy-11", "Do you mean proxy-1?"), ("nix", "has been here since this seed leads")]
    {
        let refused = cluster.run(&["node", "revoke", slip]);
        let said = error_of(&refused);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(
            said.contains(meant) && said.contains("nothing was changed") && said.contains("--force"),
            "{said}"
        );
    }
    let said = says(&["node", "revoke", "--force", "proxy-9"]);
    assert!(said.starts_with("proxy-9 is refused from now on. Nobody of that name is here\n"), "{said}");
    assert!(said.contains("have\ncluster/live.key, nodes but datastores cluster/secret"), "{said}");
    assert!(says(&["operator", "revoke", "eve"]).contains("look at the name once more"));
    let said = says(&["node", "revoke", "live-1"]);
    assert!(said.starts_with("live-1 is refused from now on\n"), "{said}");
    for name in ["proxy-9", "live-1"] {
        assert!(ada(&["node", "readmit", name]).status.success());
    }
    assert_eq!(says(&["node", "readmit", "neverwas"]), "neverwas was not revoked: nothing was changed\n");
    assert_eq!(cluster.json(&["node", "readmit", "neverwas"])["changed"], false);

    // Who did it is told by the certificate, whatever they say of themselves.
    let rescue = [
        &["--credentials", "ada-credentials", "--seed", &seed][..],
        &["node", "revoke", "--force", "proxy-8"],
    ]
    .concat();
    let mut command = Command::new(env!("CARGO_BIN_EXE_protoplex"));
    let revoked =
        command.args(rescue).env("USER", "bob").env("PROTOPLEX_OPERATOR", "bob").current_dir(folder);
    assert!(revoked.output().unwrap().status.success());
    let add = ["handler", "add", "a", "--path", "/a", "--key", "k", "--pool", "files"];
    for command in [&["join-token", "create", "--kind", "proxy"][..], &add] {
        assert!(ada(command).status.success(), "{command:?}");
    }
    let listed = cluster.json(&["node", "revoked"]);
    let by = |name: &str| {
        listed.as_array().unwrap().iter().find(|it| it["name"] == name).unwrap()["operator"].clone()
    };
    assert_eq!(by("proxy-8"), "ada");
    assert!(by("operator/eve").as_str().unwrap().starts_with("local (says "), "{listed}");
    assert_eq!(cluster.json(&["join-token", "list"])[0]["created_by"], "ada");
    assert_eq!(cluster.json(&["handler", "history"])[0]["operator"], "ada");
}

#[test]
fn init_makes_a_cluster_once() {
    let folder = tempfile::tempdir().unwrap();
    for data in ["d", "e"] {
        // As a join that failed leaves it.
        let left = folder.path().join(data).join("cluster/nodes/proxy-2");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("key.pem"), "").unwrap();
    }
    let port = Port::take();
    let listen = format!("datastore.listen={}", port.address());
    let begins = ["--data", "e", "datastore", "--set", &listen];
    let begins = [&begins[..], &["--set", "meta.datastore=127.0.0.1:0"]].concat();
    let begun = Elsewhere::start(folder.path(), "e", &begins);
    until(&format!("a cluster begins: {}", begun.says()), || {
        folder.path().join("e/cluster/ca.pem").exists().then_some(())
    });
    begun.kill();
    let made = stranger(
        folder.path(),
        &[
            "--data",
            "d",
            "--set",
            "seed.listen=10.0.0.7:9050",
            "--set",
            "seed.datastore=10.0.0.7:8060",
            "init",
        ],
    );
    let next = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for step in [
        "join-token create",
        "--seed 10.0.0.7:9050 proxy --join",
        "handler add live --path",
        "handler add files",
    ] {
        assert!(next.contains(step), "{step}: {next}");
    }
    let key = fs::read_to_string(folder.path().join("d/cluster/ca.key")).unwrap();
    let again = stranger(folder.path(), &["--data", "d", "init"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(error_of(&again).contains("is there already: nothing was changed"));
    assert_eq!(fs::read_to_string(folder.path().join("d/cluster/ca.key")).unwrap(), key);
}

#[test]
fn row_a_token_of_another_cluster_is_refused_where_there_is_an_identity() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| stranger(folder.path(), arguments);
    for data in ["a", "b"] {
        assert!(run(&["--data", data, "init"]).status.success());
    }
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let before = ["ca.pem", "ca.key", "secret"].map(|name| read(&format!("a/cluster/{name}")));
    let other = Identity::open(&folder.path().join("b/cluster")).unwrap();
    let token = JoinToken::draw(other.fingerprint()).to_string();
    let (seed, proxy) = (["--set", "seed.listen=127.0.0.1:0"], ["--set", "proxy.http=[\"127.0.0.1:0\"]"]);
    let metas =
        ["--set", "meta.seed=127.0.0.1:0", "--set", "meta.proxy=127.0.0.1:0", "--set", "proxy.https=[]"];
    for command in [
        &[&["seed", "--join", &token], &seed[..], &metas].concat()[..],
        &[&["proxy", "--join", &token], &proxy[..], &metas].concat(),
        &["enrol", "a/cluster", "--node", "rooms-1", "--token", &token],
    ] {
        let refused = run(&[&["--data", "a", "--seed", "127.0.0.1:9"], command].concat());
        assert_eq!(refused.status.code(), Some(1), "{command:?}");
        let said = error_of(&refused);
        assert!(said.contains("a/cluster is of another cluster: nothing was changed"), "{said}");
    }
    let own = JoinToken::draw(Identity::open(&folder.path().join("a/cluster")).unwrap().fingerprint());
    let said = error_of(&run(&["enrol", "a/cluster", "--node", "rooms-1", "--token", &own.to_string()]));
    assert!(said.contains("a folder of their own"), "{said}");
    assert_eq!(before, ["ca.pem", "ca.key", "secret"].map(|name| read(&format!("a/cluster/{name}"))));
    assert!(!folder.path().join("a/cluster/cert.pem").exists());
}

const RENEW: &str = "
import http.client, ssl, sys
host, port = sys.argv[1].rsplit(':', 1)
context = ssl.create_default_context(cafile='b/ca.pem')
context.load_cert_chain('b/cert.pem', 'b/key.pem')
class Named(http.client.HTTPSConnection):
    def connect(self):
        http.client.HTTPConnection.connect(self)
        self.sock = context.wrap_socket(self.sock, server_hostname='service.protoplex.internal')
def ask(path):
    connection = Named(host, int(port), timeout=20)
    connection.request('POST', path, body=b'')
    answer = connection.getresponse()
    return answer.status, answer.read().decode()
status, chain = ask('/v1/certificate')
assert status == 200, (status, chain)
assert chain != open('b/cert.pem').read()
open('b/cert.pem', 'w').write(chain)
context.load_cert_chain('b/cert.pem', 'b/key.pem')
assert ask('/v1/certificate')[0] == 200
status, problem = ask('/protoplex.v1.Operator/Status')
assert status == 403 and 'may not call Operator.Status' in problem, (status, problem)
context = ssl.create_default_context(cafile='b/ca.pem')
status, problem = ask('/v1/certificate')
assert status == 401 and 'no certificate of this cluster' in problem, (status, problem)
print('renewed')
";

#[test]
fn pythons_standard_library_renews_its_certificate_by_itself() {
    let cluster = start();
    let token = join_token(&cluster, &["--kind", "backend", "--pool", "rooms"]);
    let seed = seed(&cluster);
    let enrolled = stranger(cluster.folder(), &["--seed", &seed, "enrol", "b", "--token", &token]);
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let python =
        Command::new("python3").args(["-c", RENEW, &seed]).current_dir(cluster.folder()).output().unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
}
