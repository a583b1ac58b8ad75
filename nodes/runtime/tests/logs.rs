//! One log of many real processes, through many rotations.

#![expect(clippy::unwrap_used, reason = "also outside of test functions this is test code")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const WRITER: &str = env!("CARGO_BIN_EXE_log-writer");
const MAX_BYTES: u64 = 8192;

fn write(log: &Path, name: &str, count: u64) -> Child {
    let (bytes, count) = (MAX_BYTES.to_string(), count.to_string());
    let mut command = Command::new(WRITER);
    command.arg(log).args([&bytes, name, &count]).stdout(Stdio::piped()).spawn().unwrap()
}

/// The log's files, the oldest first.
fn files(log: &Path) -> Vec<PathBuf> {
    let number = |path: &Path| path.extension()?.to_str()?.parse::<u32>().ok();
    let files = std::fs::read_dir(log.parent().unwrap()).unwrap().map(|file| file.unwrap().path());
    let mut aside: Vec<_> = files.filter_map(|path| Some((number(&path)?, path))).collect();
    aside.sort_by(|one, other| other.cmp(one));
    aside.into_iter().map(|(_, path)| path).chain([log.to_owned()]).collect()
}

/// The numbers of each writer, in the order of the log, and how many lines are not whole.
fn read(log: &Path) -> (BTreeMap<String, Vec<u64>>, usize) {
    let (mut written, mut torn) = (BTreeMap::<String, Vec<u64>>::new(), 0);
    for file in files(log) {
        for line in std::fs::read_to_string(file).unwrap().lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                [name, number, dots] if dots == ".".repeat(40) => {
                    written.entry(name.to_owned()).or_default().push(number.parse().unwrap());
                }
                _ => torn += 1,
            }
        }
    }
    (written, torn)
}

#[test]
fn of_many_processes_at_once_no_line_is_lost_torn_or_doubled_through_rotations() {
    const LINES: u64 = 4000;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("x.log");
    let mut writers: Vec<_> = (0..6).map(|n| write(&log, &format!("writer-{n}"), LINES)).collect();
    for writer in &mut writers {
        // What it says is not asked here, but has to go somewhere.
        std::io::copy(writer.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
        assert!(writer.wait().unwrap().success());
    }
    let (written, torn) = read(&log);
    assert_eq!((written.len(), torn), (6, 0));
    for (name, numbers) in written {
        assert!(numbers.iter().copied().eq(1..=LINES), "{name}: {} lines", numbers.len());
    }
    let files = files(&log);
    assert!(files.len() > 100, "{} files", files.len());
    for file in files {
        assert!(file.metadata().unwrap().len() <= MAX_BYTES, "{}", file.display());
    }
}

#[test]
fn processes_that_are_killed_at_any_time_lose_nothing_that_they_had_written() {
    const KILLS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("x.log");
    let mut steady = write(&log, "steady", 20_000);
    let drain = steady.stdout.take().unwrap();
    let heard = std::thread::spawn(move || BufReader::new(drain).lines().count());
    let mut said = BTreeMap::new();
    for n in 0..KILLS {
        let name = format!("killed-{n}");
        let mut writer = write(&log, &name, u64::MAX);
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        // Each at another point of its work.
        let last = lines.take(5 + 7 * n).last().unwrap().unwrap();
        writer.kill().unwrap();
        writer.wait().unwrap();
        said.insert(name, last.parse::<u64>().unwrap());
    }
    assert!(steady.wait().unwrap().success());
    heard.join().unwrap();
    let (written, torn) = read(&log);
    assert!(torn <= KILLS, "{torn} lines are not whole");
    assert!(written["steady"].iter().copied().eq(1..=20_000));
    for (name, said) in said {
        let numbers = &written[&name];
        assert!(numbers.len() as u64 >= said, "{name} had written {said} lines, {} are there", numbers.len());
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{name}");
    }
}
