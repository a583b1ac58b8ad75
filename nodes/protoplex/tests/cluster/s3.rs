//! A cluster whose files are in S3: a real server with signatures, which goes away, is slow, and fails on order.

use http::Method;
use protoplex_testkit::cluster::Cluster;
use protoplex_testkit::s3::{ACCESS_KEY, BUCKET, Fault, FaultS3, SECRET_KEY};
use protoplex_testkit::until;
use tempfile::TempDir;

use crate::{get, noise, plan, put};

/// The cluster goes before the server that it uses.
struct Bench {
    cluster: Cluster,
    s3: FaultS3,
    folder: TempDir,
}

fn start() -> Bench {
    start_with(500)
}

/// With so much time for the bucket to begin an answer before it is asked again.
fn start_with(read_timeout_ms: u64) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let s3 = FaultS3::start(folder.path());
    let settings = [
        "storage=s3".to_owned(),
        format!("s3.bucket={BUCKET}"),
        "s3.region=us-east-1".to_owned(),
        format!("s3.endpoint={}", s3.endpoint()),
        "s3.path_style=true".to_owned(),
        format!("s3.access_key={ACCESS_KEY}"),
        format!("s3.secret_key={SECRET_KEY}"),
        "s3.max_attempts=2".to_owned(),
        format!("s3.read_timeout_ms={read_timeout_ms}"),
        "s3.body_idle_timeout_ms=500".to_owned(),
        "s3.upload_timeout_ms=1000".to_owned(),
    ];
    let plan = settings.iter().fold(plan(), |plan, setting| plan.set(&format!("fileserver.{setting}")));
    Bench { cluster: plan.start(), s3, folder }
}

impl Bench {
    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.cluster.http())
    }

    /// Uploads, and waits until the bucket has it.
    fn store(&self, path: &str, body: &[u8]) -> serde_json::Value {
        let answer = put(&self.cluster, path, body, &[]);
        assert_eq!(answer.status, 201, "{answer:?}");
        let stored = answer.json();
        until("the file is in the bucket", || {
            let files = self.cluster.json(&["files", "list", "--prefix", path]);
            (files[0]["stored"] == true).then_some(())
        });
        stored
    }

    /// Files that are in nobody's memory and on no disk of ours.
    fn forget(&mut self) {
        self.cluster.stop();
        std::fs::remove_dir_all(self.cluster.data().join("cache")).unwrap();
        self.cluster.start();
    }
}

#[test]
fn files_go_to_the_bucket_and_come_back_after_the_disk_is_lost() {
    // A busy machine must not have the bucket asked twice: that is counted.
    let mut bench = start_with(20_000);
    let body = noise(31, 20_000_000);
    let stored = bench.store("/files/big", &body);
    let text = "the same line again\n".repeat(50_000);
    bench.store("/files/text.txt", text.as_bytes());
    let left = std::fs::read_dir(bench.folder.path().join(BUCKET)).unwrap().count();
    assert!(left >= 2, "{left} objects in the bucket");

    bench.forget();
    let before = bench.s3.count(&Method::GET);
    std::thread::scope(|scope| {
        let reads: Vec<_> = (0..6).map(|_| scope.spawn(|| get(&bench.url("/files/big"), &[]).body)).collect();
        for read in reads {
            assert_eq!(read.join().unwrap(), body);
        }
    });
    assert_eq!(bench.s3.count(&Method::GET) - before, 1, "one read of the bucket for all");
    let reference = bench.url(&format!("/{}", stored["reference"].as_str().unwrap()));
    assert_eq!(get(&reference, &["-r", "100-199"]).body, &body[100..200]);
    let gzip = get(&bench.url("/files/text.txt"), &["--compressed"]);
    assert_eq!((gzip.text(), gzip.header("content-encoding")), (text, Some("gzip")));
}

#[test]
fn row_s3_away_slow_or_answering_5xx_uploads_wait_and_downloads_are_told() {
    let mut bench = start();
    let cached = noise(32, 300_000);
    let lost = noise(33, 300_000);
    bench.store("/files/lost", &lost);
    bench.store("/files/cached", &cached);
    bench.forget();

    for (round, fault) in [Fault::Status(503), Fault::Hang].into_iter().enumerate() {
        assert_eq!(get(&bench.url("/files/cached"), &[]).body, cached);
        bench.s3.spoil_all(Some(fault));
        let told = get(&bench.url("/files/lost"), &[]);
        assert!([502, 503, 504].contains(&told.status), "{told:?}");
        assert_ne!(told.header("cache-control").unwrap_or_default(), "public, max-age=31536000, immutable");
        assert_eq!(get(&bench.url("/files/cached"), &[]).body, cached, "what is cached is served");

        let path = format!("/files/meanwhile-{round}");
        let body = noise(40 + round as u64, 200_000);
        assert_eq!(put(&bench.cluster, &path, &body, &[]).status, 201, "staged, and answered");
        assert_eq!(get(&bench.url(&path), &[]).body, body, "served from where it is staged");

        bench.s3.spoil_all(None);
        // No negative entry is left: the file is there at once.
        let back = until("the bucket is taken for good again", || {
            let back = get(&bench.url("/files/lost"), &[]);
            (back.status == 200).then_some(back)
        });
        assert_eq!(back.body, lost);
        until("what was staged is pushed", || {
            let files = bench.cluster.json(&["files", "list", "--prefix", &path]);
            (files[0]["stored"] == true).then_some(())
        });
        bench.forget();
        assert_eq!(get(&bench.url(&path), &[]).body, body, "from the bucket");
    }
}

#[test]
fn a_smaller_cache_is_a_matter_of_a_reload() {
    let mut bench = start_with(20_000);
    let body = noise(32, 3_000_000);
    bench.store("/files/big", &body);
    bench.forget();
    assert_eq!(get(&bench.url("/files/big"), &[]).body, body);
    let kept = || {
        let find = ["-type", "f", "-size", "+2M"];
        let found =
            std::process::Command::new("find").arg(bench.cluster.data().join("cache")).args(find).output();
        String::from_utf8(found.unwrap().stdout).unwrap().lines().count()
    };
    until("it is in the cache", || (kept() == 1).then_some(()));
    let config = bench.cluster.folder().join("protoplex.toml");
    std::fs::write(config, "[fileserver]\ncache_max_bytes = 1000000\n").unwrap();
    assert_eq!(bench.cluster.json(&["restart", "--reload", "fileserver-1"])[0]["ok"], true);
    until("it has gone from the cache", || (kept() == 0).then_some(()));
    assert_eq!(get(&bench.url("/files/big"), &[]).body, body);
}
