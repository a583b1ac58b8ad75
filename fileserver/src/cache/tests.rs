use std::future::Future;
use std::os::unix::fs::FileExt;
use std::time::UNIX_EPOCH;

use http::Method;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use super::sweep::{Swept, sweep_once};
use super::*;
use crate::storage::contract_tests::{noise, stage};
use crate::storage::fault_s3::{Fault, FaultS3};
use crate::stored::StoredBody;

const DEADLINE: Duration = Duration::from_secs(20);

/// A bucket with one body in it, and a cache in front.
struct Bench {
    server: FaultS3,
    cache: Cache,
    reference: Reference,
    meta: Meta,
    body: Vec<u8>,
    folder: TempDir,
}

impl Bench {
    async fn new(body: Vec<u8>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = FaultS3::start(&folder.path().join("s3"));
        let s3 = server.client().await;
        let staged = folder.path().join("staged");
        let (reference, meta) = stage(&staged, &body);
        s3.put(&reference, &meta, &staged).await.unwrap();
        let cache = Cache::new(folder.path().join("cache"), s3, Tasks::default());
        Self { server, cache, reference, meta, body, folder }
    }

    /// Another child of the same machine.
    async fn sibling(&self) -> Cache {
        Cache::new(self.folder.path().join("cache"), self.server.client().await, Tasks::default())
    }

    fn path(&self) -> PathBuf {
        place(&self.folder.path().join("cache"), &self.reference)
    }

    fn part(&self) -> PathBuf {
        self.path().with_extension("part")
    }

    fn gets(&self) -> usize {
        self.server.count(&Method::GET)
    }

    async fn open(&self, cache: &Cache) -> Result<StoredBody, StorageError> {
        let found = match cache.hit(&self.reference).await {
            Some(found) => found,
            None => cache.fetch(&self.reference).await?,
        };
        Ok(StoredBody::of_cache(found, cache.s3(), &self.reference))
    }

    async fn read(&self, cache: &Cache) -> Result<Vec<u8>, StorageError> {
        self.read_on(&mut self.open(cache).await?, 0).await
    }

    async fn read_on(&self, body: &mut StoredBody, from: usize) -> Result<Vec<u8>, StorageError> {
        let mut read = Vec::new();
        while from + read.len() < self.body.len() {
            let at = (from + read.len()) as u64;
            read.extend_from_slice(&body.read(at, u64::MAX).await?);
        }
        Ok(read)
    }

    /// Waits for the fetch to leave its file in place.
    async fn cached(&self) {
        until(|| self.path().exists()).await;
    }

    /// Plays another process that fills the part, and has come as far as `length`.
    fn foreign_filler(&self, length: usize) -> File {
        fs::create_dir_all(self.part().parent().unwrap()).unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(self.part()).unwrap();
        file.lock().unwrap();
        self.meta.write_to(&file).unwrap();
        file.write_all_at(&self.body[..length], BODY_OFFSET).unwrap();
        file
    }
}

async fn until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "the condition was not met in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { tokio::time::timeout(DEADLINE, test).await.unwrap() });
}

#[test]
fn what_was_uploaded_is_served_without_a_fetch_once_the_staging_copy_is_gone() {
    local(async {
        let bench = Bench::new(noise(100_000)).await;
        let staged = bench.folder.path().join("staged");
        let long_ago = SystemTime::now() - Duration::from_secs(24 * 3600);
        File::open(&staged).unwrap().set_modified(long_ago).unwrap();
        bench.cache.adopt(&bench.reference, &staged).await;
        let used = fs::metadata(bench.path()).unwrap().modified().unwrap();
        assert!(used > long_ago + Duration::from_secs(3600), "it would be the first to be evicted");
        fs::remove_file(staged).unwrap();
        assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body);
        // A second time is as good as once.
        bench.cache.adopt(&bench.reference, &bench.path()).await;
        assert_eq!(bench.gets(), 0);
    });
}

#[test]
fn a_miss_is_read_from_s3_once_and_is_a_hit_from_then_on() {
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body);
        bench.cached().await;
        assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body);
        assert_eq!(bench.read(&bench.sibling().await).await.unwrap(), bench.body);
        assert_eq!(bench.gets(), 1);
        assert!(!bench.part().exists());
    });
}

#[test]
fn an_empty_body_is_cached_too() {
    local(async {
        let bench = Bench::new(Vec::new()).await;
        assert_eq!(bench.open(&bench.cache).await.unwrap().meta(), &bench.meta);
        bench.cached().await;
        assert_eq!(bench.open(&bench.cache).await.unwrap().meta(), &bench.meta);
        assert_eq!(bench.gets(), 1);
    });
}

#[test]
fn concurrent_misses_of_two_children_make_one_read_and_all_follow_it() {
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        let gate = Arc::new(Semaphore::new(0));
        bench.server.spoil(Method::GET, Fault::Gate(100_000, Arc::clone(&gate)));
        let sibling = bench.sibling().await;
        let mut readers = Vec::new();
        for cache in [&bench.cache, &sibling, &bench.cache, &sibling] {
            let mut body = bench.open(cache).await.unwrap();
            // What has come is read while the rest is still held back.
            let first = body.read(50_000, 10_000).await.unwrap();
            assert_eq!(first, bench.body[50_000..50_000 + first.len()]);
            readers.push(body);
        }
        assert!(!bench.path().exists());
        gate.add_permits(1);
        for reader in &mut readers {
            assert_eq!(bench.read_on(reader, 0).await.unwrap(), bench.body);
        }
        assert_eq!(bench.gets(), 1);
    });
}

#[test]
fn a_filler_that_died_in_another_process_is_taken_over_from() {
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        let filler = bench.foreign_filler(100_000);
        let mut body = bench.open(&bench.cache).await.unwrap();
        assert_eq!(body.read(99_000, 1_000).await.unwrap(), bench.body[99_000..100_000]);
        assert_eq!(bench.gets(), 0);
        drop(filler);
        assert_eq!(bench.read_on(&mut body, 100_000).await.unwrap(), bench.body[100_000..]);
        assert_eq!(bench.gets(), 1);
        bench.cached().await;
    });
}

#[test]
fn a_filler_that_gave_up_in_another_process_makes_it_our_turn() {
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        let filler = bench.foreign_filler(100_000);
        let mut body = bench.open(&bench.cache).await.unwrap();
        fs::remove_file(bench.part()).unwrap();
        drop(filler);
        assert_eq!(bench.read_on(&mut body, 0).await.unwrap(), bench.body);
        assert_eq!(bench.gets(), 1);
    });
}

#[test]
fn a_part_that_a_crash_left_is_filled_anew() {
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        drop(bench.foreign_filler(100_000));
        // What the crash left is not even right.
        File::options()
            .write(true)
            .open(bench.part())
            .unwrap()
            .write_all_at(&[0; 50_000], BODY_OFFSET)
            .unwrap();
        assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body);
        assert_eq!(bench.gets(), 1);
    });
}

#[test]
fn damaged_and_truncated_files_are_dropped_and_fetched_again() {
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        bench.read(&bench.cache).await.unwrap();
        bench.cached().await;
        let spoils: [fn(&File); 3] = [
            |file| file.write_all_at(&[0xff; 3], BODY_OFFSET + 150_000).unwrap(),
            |file| file.set_len(BODY_OFFSET + 150_000).unwrap(),
            |file| file.write_all_at(&[0; 16], 0).unwrap(),
        ];
        for (number, spoil) in (2..).zip(spoils) {
            spoil(&File::options().write(true).open(bench.path()).unwrap());
            assert_eq!(bench.read(&bench.sibling().await).await.unwrap(), bench.body);
            bench.cached().await;
            assert_eq!(bench.gets(), number);
        }
    });
}

#[test]
fn corrupt_bytes_from_s3_are_never_served_whole_and_never_cached() {
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        bench.server.spoil(Method::GET, Fault::Corrupt);
        assert!(matches!(bench.read(&bench.cache).await, Err(StorageError::Damaged(_))));
        until(|| !bench.part().exists()).await;
        assert!(!bench.path().exists());
        assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body);
    });
}

#[test]
fn a_body_cut_in_the_middle_goes_on_where_it_broke_off() {
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        bench.server.spoil(Method::GET, Fault::Cut(100_000));
        assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body);
        assert_eq!(bench.gets(), 2);
    });
}

#[test]
fn row_s3_away_the_cached_is_still_served_and_the_rest_is_an_error_that_passes() {
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        bench.server.spoil_all(Some(Fault::Status(503)));
        assert!(matches!(bench.read(&bench.cache).await, Err(StorageError::Unavailable(_))));
        bench.server.spoil_all(None);
        assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body);
        bench.cached().await;
        bench.server.spoil_all(Some(Fault::Status(503)));
        assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body);
    });
}

#[test]
fn what_s3_does_not_have_leaves_nothing_behind() {
    local(async {
        let bench = Bench::new(Vec::new()).await;
        let absent = Reference::new(&[1; 32], &[2; 64]);
        assert!(matches!(bench.cache.fetch(&absent).await, Err(StorageError::NotFound)));
        let folder = place(&bench.folder.path().join("cache"), &absent);
        until(|| fs::read_dir(folder.parent().unwrap()).unwrap().count() == 0).await;
    });
}

#[test]
fn row_disk_unusable_bodies_go_past_the_cache() {
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        fs::write(bench.folder.path().join("cache"), "not a folder").unwrap();
        for _ in 0..2 {
            assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body);
        }
    });
}

#[test]
fn row_disk_full_in_the_middle_readers_go_on_past_the_cache() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    local(async {
        let bench = Bench::new(noise(300_000)).await;
        // The kernel refuses any write beyond this, as it does on a full disk. The signal that comes along is caught.
        let _signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(25)).unwrap();
        let limit = Rlimit { current: Some(BODY_OFFSET + 120_000), ..getrlimit(Resource::Fsize) };
        setrlimit(Resource::Fsize, limit).unwrap();
        assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body);
        assert!(!bench.path().exists() && !bench.part().exists());
        assert_eq!(bench.read(&bench.cache).await.unwrap(), bench.body, "with the cache off");
        setrlimit(Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
    });
}

#[test]
fn a_use_is_noted_for_the_eviction() {
    local(async {
        let bench = Bench::new(noise(1_000)).await;
        bench.read(&bench.cache).await.unwrap();
        bench.cached().await;
        File::open(bench.path()).unwrap().set_modified(UNIX_EPOCH).unwrap();
        bench.read(&bench.cache).await.unwrap();
        let used = fs::metadata(bench.path()).unwrap().modified().unwrap();
        assert!(used.elapsed().unwrap() < Duration::from_secs(60));
    });
}

#[test]
fn a_sweep_evicts_what_is_over_and_removes_parts_that_nobody_fills() {
    let folder = tempfile::tempdir().unwrap();
    let place_of = |number: u8| place(folder.path(), &Reference::new(&[number; 32], &[number; 64]));
    for (number, age_s) in [(1, 10), (2, 1_000), (3, 100)] {
        let path = place_of(number);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![0; 40_000]).unwrap();
        File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
    }
    let parts = [place_of(1).with_extension("part"), place_of(2).with_extension("part")];
    let filler = File::create(&parts[0]).unwrap();
    filler.lock().unwrap();
    fs::write(&parts[1], "orphan").unwrap();

    assert_eq!(sweep_once(folder.path(), 100_000).unwrap(), Swept { evicted: 1, bytes_kept: 80_000 });
    assert!(place_of(1).exists() && !place_of(2).exists() && place_of(3).exists());
    assert!(parts[0].exists() && !parts[1].exists());
    assert_eq!(sweep_once(&folder.path().join("absent"), 1).unwrap(), Swept { evicted: 0, bytes_kept: 0 });
}
