//! What becomes of lines: none is lost, torn or doubled, whoever is killed at whatever step.

use std::os::unix::fs::symlink;
use std::time::SystemTime;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("x.log")
    }

    fn open(&self, rotation: Rotation) -> LogFile {
        LogFile::open(&self.log(), rotation).unwrap()
    }

    fn text(&self, number: u32) -> String {
        fs::read_to_string(aside(&self.log(), number)).unwrap()
    }

    /// All lines, the oldest first.
    fn lines(&self) -> Vec<String> {
        let mut files = put_aside(&self.log());
        files.push((0, self.log()));
        files.sort();
        files.iter().rev().flat_map(|(_, path)| lines(&fs::read_to_string(path).unwrap())).collect()
    }

    fn numbers(&self) -> Vec<u32> {
        let mut numbers: Vec<_> = put_aside(&self.log()).into_iter().map(|(number, _)| number).collect();
        numbers.sort_unstable();
        numbers
    }

    fn make_older(&self, number: u32, age: Duration) {
        let file = open(&aside(&self.log(), number)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn of(max_bytes: u64, keep: u32) -> Rotation {
    Rotation { max_bytes, keep, max_age: Duration::ZERO }
}

#[test]
fn a_file_never_becomes_too_large_and_so_many_are_kept() {
    let folder = Folder::new();
    let mut log = folder.open(of(10, 2));
    for batch in ["1234\n1234\n", "a\nb\nc\n", "dddd\ne\n", "0123456789abcdef\nf\n"] {
        log.append(batch.as_bytes()).unwrap();
    }
    assert_eq!([2, 1, 0].map(|number| folder.text(number)), ["dddd\ne\n", "0123456789abcdef\n", "f\n"]);
    assert_eq!(folder.numbers(), [1, 2]);
}

#[test]
fn without_a_rule_nothing_is_put_aside() {
    let folder = Folder::new();
    let mut log = folder.open(Rotation::default());
    let lines = "x\n".repeat(100_000);
    log.append(lines.as_bytes()).unwrap();
    folder.make_older(0, 1000 * DAY);
    log.append(b"y\n").unwrap();
    assert_eq!((folder.text(0), folder.numbers()), (lines + "y\n", Vec::new()));
}

#[test]
fn what_is_old_is_put_aside_then_removed() {
    let folder = Folder::new();
    let rotation = Rotation { max_age: 3 * DAY, ..of(0, 0) };
    folder.open(rotation).append(b"old\n").unwrap();
    let lock = open(&with_suffix(&folder.log(), ".lock")).unwrap();
    lock.set_modified(SystemTime::now() - 2 * DAY).unwrap();
    folder.open(rotation).append(b"still\n").unwrap();
    assert_eq!(folder.numbers(), Vec::<u32>::new());
    lock.set_modified(SystemTime::now() - 3 * DAY).unwrap();
    folder.open(rotation).append(b"new\n").unwrap();
    assert_eq!((folder.text(1), folder.text(0)), ("old\nstill\n".to_owned(), "new\n".to_owned()));
    assert!(lock.metadata().unwrap().modified().unwrap().elapsed().unwrap() < DAY, "it was begun just now");
    folder.make_older(1, 3 * DAY);
    // Also where nothing is written.
    folder.open(rotation).append(b"").unwrap();
    assert_eq!((folder.numbers(), folder.text(0)), (Vec::new(), "new\n".to_owned()));
}

#[test]
fn fewer_are_kept_from_when_that_is_configured() {
    let folder = Folder::new();
    let mut log = folder.open(of(2, 0));
    (0..9).for_each(|line| log.append(format!("{line}\n").as_bytes()).unwrap());
    assert_eq!(folder.numbers(), (1..9).collect::<Vec<_>>());
    for other in ["x.log.01", "x.log.3.gz", "x.log.", "y.log.9"] {
        fs::write(folder.0.path().join(other), "").unwrap();
    }
    folder.open(of(2, 3)).append(b"").unwrap();
    assert_eq!(
        (folder.numbers(), folder.lines()),
        (vec![1, 2, 3], vec!["5".into(), "6".into(), "7".into(), "8".into()])
    );
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 4 + 1 + 4, "files of others are left alone");
}

#[test]
fn whoever_is_killed_while_it_puts_a_file_aside_the_next_one_goes_on() {
    for keep in [0, 3] {
        for steps in 0..5 {
            let folder = Folder::new();
            let rotation = of(2, keep);
            let mut log = folder.open(rotation);
            (0..4).for_each(|line| log.append(format!("{line}\n").as_bytes()).unwrap());
            let exists = |number| aside(&folder.log(), number).exists();
            for (from, to) in rotation.moves(exists).take(steps) {
                fs::rename(aside(&folder.log(), from), aside(&folder.log(), to)).unwrap();
            }
            // Both who comes anew, and who has the file open from before.
            folder.open(rotation).append(b"4\n").unwrap();
            log.append(b"5\n").unwrap();
            let kept = folder.lines();
            let expected: Vec<_> = (0..6).map(|line: u32| line.to_string()).collect();
            assert!(expected.ends_with(&kept), "{kept:?} after {steps} steps");
            assert_eq!(kept.len(), if keep == 0 { 6 } else { 4 }, "{kept:?} after {steps} steps");
        }
    }
}

#[test]
fn a_line_that_was_cut_short_spoils_no_other() {
    let folder = Folder::new();
    let mut log = folder.open(Rotation::default());
    log.append(b"whole\n").unwrap();
    open(&folder.log()).unwrap().write_all(b"cut sho").unwrap();
    log.append(b"next\n").unwrap();
    assert_eq!(folder.text(0), "whole\ncut sho\nnext\n");
}

#[test]
fn whoever_has_the_old_file_open_writes_to_the_new_one() {
    let folder = Folder::new();
    let (mut one, mut other) = (folder.open(of(4, 9)), folder.open(of(4, 9)));
    one.append(b"1\n").unwrap();
    other.append(b"2\n3\n").unwrap();
    one.append(b"4\n").unwrap();
    assert_eq!((folder.text(1), folder.text(0)), ("1\n2\n".to_owned(), "3\n4\n".to_owned()));
    fs::remove_file(folder.log()).unwrap();
    one.append(b"5\n").unwrap();
    assert_eq!(folder.text(0), "5\n", "also where somebody has removed it");
}

#[test]
fn a_full_device_takes_nothing_and_has_no_company() {
    let folder = Folder::new();
    symlink("/dev/full", folder.log()).unwrap();
    let mut log = folder.open(of(4096, 1));
    for _ in 0..2 {
        let error = log.append(b"1\n2\n").unwrap_err();
        assert_eq!((error.left, error.source.kind()), (4, ErrorKind::StorageFull));
    }
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_cannot_be_put_aside_grows_and_takes_every_line() {
    let folder = Folder::new();
    let mut log = folder.open(of(4, 1));
    // No file can take the place of a folder.
    fs::create_dir(aside(&folder.log(), 1)).unwrap();
    log.append(b"1\n2\n3\n4\n").unwrap();
    log.append(b"5\n").unwrap();
    assert_eq!(folder.text(0), "1\n2\n3\n4\n5\n");
    assert!(log.stuck().is_some_and(|why| why.contains("directory")), "{:?}", log.stuck());
    fs::remove_dir(aside(&folder.log(), 1)).unwrap();
    log.append(b"6\n").unwrap();
    assert_eq!((folder.text(1).len(), folder.text(0), log.stuck()), (10, "6\n".to_owned(), None));
    let lock = open(&with_suffix(&folder.log(), ".lock")).unwrap();
    lock.set_modified(SystemTime::now() - DAY).unwrap();
    fs::remove_file(aside(&folder.log(), 1)).unwrap();
    fs::create_dir(aside(&folder.log(), 1)).unwrap();
    folder.open(Rotation { max_age: DAY, ..of(0, 1) }).append(b"7\n").unwrap();
    assert_eq!(folder.text(0), "6\n7\n", "also where it is old");
}

#[test]
fn a_lock_that_is_held_for_ever_stops_no_line() {
    let folder = Folder::new();
    let _held = lock(&folder.log()).unwrap();
    folder.open(of(2, 1)).append(b"1\n2\n").unwrap();
    assert_eq!((folder.text(0), folder.numbers()), ("1\n2\n".to_owned(), Vec::new()));
}

fn take_all(_: &[u8]) -> Verdict {
    Verdict::Take
}

/// What has come since the last look.
fn news(trail: &mut Trail) -> String {
    let (lines, more) = trail.read(take_all).unwrap();
    assert!(!more);
    String::from_utf8(lines).unwrap()
}

#[test]
fn a_reader_goes_through_all_files_that_came_between_two_looks() {
    let folder = Folder::new();
    let mut log = folder.open(of(4, 9));
    log.append(b"0\n").unwrap();
    let (mut trail, _) = Trail::open(&folder.log(), 0, take_all).unwrap();
    log.append(b"1\n2\n3\n4\n5\n6\n7\n").unwrap();
    assert_eq!(folder.numbers(), [1, 2, 3]);
    assert_eq!(news(&mut trail), "1\n2\n3\n4\n5\n6\n7\n");
    assert_eq!(news(&mut trail), "");
    log.append(b"8\n").unwrap();
    assert_eq!(news(&mut trail), "8\n");
}

#[test]
fn a_reader_that_is_too_slow_goes_on_with_the_oldest_file_that_is_left() {
    let folder = Folder::new();
    let mut log = folder.open(of(2, 2));
    let (mut trail, _) = Trail::open(&folder.log(), 0, take_all).unwrap();
    log.append(b"1\n2\n3\n4\n5\n").unwrap();
    // It still has the first one open.
    assert_eq!(news(&mut trail), "1\n3\n4\n5\n");
    fs::remove_file(folder.log()).unwrap();
    log.append(b"6\n").unwrap();
    assert!(news(&mut trail).ends_with("6\n"));
}

#[test]
fn a_reader_of_a_log_that_somebody_has_removed_is_not_sent_back_to_its_beginnings() {
    let folder = Folder::new();
    let mut log = folder.open(of(4, 9));
    log.append(b"1\n2\n3\n4\n5\n").unwrap();
    (1..=2).for_each(|number| folder.make_older(number, DAY));
    let (mut trail, _) = Trail::open(&folder.log(), 0, take_all).unwrap();
    log.append(b"6\n").unwrap();
    fs::remove_file(folder.log()).unwrap();
    assert_eq!(news(&mut trail), "6\n", "also before there is another");
    log.append(b"7\n").unwrap();
    assert_eq!(news(&mut trail), "7\n");
}

#[test]
fn a_reader_waits_for_the_end_of_a_line_and_notices_that_a_file_was_cut() {
    let folder = Folder::new();
    let mut log = folder.open(Rotation::default());
    let (mut trail, _) = Trail::open(&folder.log(), 0, take_all).unwrap();
    open(&folder.log()).unwrap().write_all(b"beg").unwrap();
    assert_eq!(news(&mut trail), "");
    open(&folder.log()).unwrap().write_all(b"un\n").unwrap();
    assert_eq!(news(&mut trail), "begun\n");
    open(&folder.log()).unwrap().set_len(0).unwrap();
    assert_eq!(news(&mut trail), "");
    log.append(b"after\n").unwrap();
    assert_eq!(news(&mut trail), "after\n");
}

#[test]
fn the_last_lines_are_found_through_files_and_blocks() {
    let folder = Folder::new();
    let mut log = folder.open(of(200_000, 9));
    // Some lines lie across the ends of blocks.
    let line = |n: u32| format!("{n} {}\n", "x".repeat(n as usize % 700));
    let all: Vec<_> = (0..3000).map(line).collect();
    log.append(all.concat().as_bytes()).unwrap();
    assert!(folder.numbers().len() >= 4);
    for count in [0, 1, 500, 2999, 3000, 4000] {
        let (_, lines) = Trail::open(&folder.log(), count, take_all).unwrap();
        assert_eq!(
            String::from_utf8(lines).unwrap(),
            all[3000_usize.saturating_sub(count)..].concat(),
            "{count}"
        );
    }
    let tens = |line: &[u8]| if line.starts_with(b"299") { Verdict::Take } else { Verdict::Skip };
    let (_, lines) = Trail::open(&folder.log(), 11, tens).unwrap();
    assert_eq!(String::from_utf8(lines).unwrap(), line(299) + &all[2990..].concat());
    let until = |line: &[u8]| if line.starts_with(b"2997 ") { Verdict::Stop } else { Verdict::Take };
    let (_, lines) = Trail::open(&folder.log(), 100, until).unwrap();
    assert!(lines.ends_with(all[2998..].concat().as_bytes()) && lines.len() < 64 << 10);
}
