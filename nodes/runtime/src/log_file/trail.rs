//! Reads a log as it grows, from one file into the next.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{aside, first_line, is_at, lock, open, put_aside, whole_lines};

/// How far back the last lines are looked for, in bytes.
const SEARCHED_BYTES: u64 = 64 << 20;
const BLOCK_BYTES: u64 = 64 << 10;
/// What is longer is no line of ours.
const LINE_BYTES: usize = 1 << 20;
/// With so many bytes of lines a look ends, even where there is more.
const LOOK_BYTES: usize = 256 << 10;
/// So much is read in one look, whatever is found in it.
const READ_BYTES: u64 = 8 << 20;

/// What is done with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Take,
    Skip,
    /// It is older than anything that is looked for.
    Stop,
}

/// The log can't be read.
#[derive(Debug, Error)]
#[error("the log {}: {source}", path.display())]
pub(crate) struct TrailError {
    path: PathBuf,
    source: io::Error,
}

/// A place in a log. Everything is blocking.
#[derive(Debug)]
pub(crate) struct Trail {
    path: PathBuf,
    file: File,
    offset: u64,
    /// The begin of a line whose end is not there yet.
    begun: Vec<u8>,
}

impl Trail {
    /// At the end of the log, with the last lines that are wanted, up to `count` of them.
    pub(crate) fn open(
        path: &Path,
        count: usize,
        wanted: impl Fn(&[u8]) -> Verdict,
    ) -> Result<(Self, Vec<u8>), TrailError> {
        let failed = |source| TrailError { path: path.to_owned(), source };
        let (files, offset) = recent(path).map_err(failed)?;
        let lines = last(&files, count, wanted).map_err(failed)?;
        let file =
            files.into_iter().next().map_or_else(|| open(path), |(file, _)| Ok(file)).map_err(failed)?;
        Ok((Self { path: path.to_owned(), file, offset, begun: Vec::new() }, lines))
    }

    /// The lines that have come since, as far as they are wanted, and whether there may be more of them already.
    pub(crate) fn read(&mut self, wanted: impl Fn(&[u8]) -> Verdict) -> Result<(Vec<u8>, bool), TrailError> {
        self.look(wanted).map_err(|source| TrailError { path: self.path.clone(), source })
    }

    fn look(&mut self, wanted: impl Fn(&[u8]) -> Verdict) -> io::Result<(Vec<u8>, bool)> {
        let mut lines = Vec::new();
        let mut block = vec![0; BLOCK_BYTES as usize];
        let mut searched = 0;
        while lines.len() < LOOK_BYTES && searched < READ_BYTES {
            let read = self.file.read_at(&mut block, self.offset)?;
            if read == 0 {
                if self.go_on()? {
                    continue;
                }
                return Ok((lines, false));
            }
            self.offset += read as u64;
            searched += read as u64;
            self.begun.extend_from_slice(&block[..read]);
            let whole = whole_lines(&self.begun);
            for line in self.begun[..whole].split_inclusive(|byte| *byte == b'\n') {
                if wanted(line) == Verdict::Take {
                    lines.extend_from_slice(line);
                }
            }
            self.begun.drain(..whole);
            if self.begun.len() > LINE_BYTES {
                self.begun.clear();
            }
        }
        Ok((lines, true))
    }

    /// Whether there is more to read: of this file, or of the one after it where this one was put aside.
    fn go_on(&mut self) -> io::Result<bool> {
        let here = self.file.metadata()?;
        if here.len() > self.offset {
            return Ok(true);
        }
        if is_at(&here, &self.path) {
            if here.len() < self.offset {
                // Somebody has cut it.
                self.offset = here.len();
                self.begun.clear();
            }
            return Ok(false);
        }
        let _lock = lock(&self.path);
        // Nobody writes to it any more; what came before it was put aside is read first.
        if self.file.metadata()?.len() > self.offset {
            return Ok(true);
        }
        let mut files = put_aside(&self.path);
        files.push((0, self.path.clone()));
        files.sort_unstable_by_key(|(number, _)| *number);
        let next = match files.iter().position(|(_, path)| is_at(&here, path)) {
            Some(0) => return Ok(false),
            Some(place) => place - 1,
            // It was removed, for being the oldest or by hand. What was last written to before it has been read.
            None => {
                let read = here.modified()?;
                let is_later = |path: &Path| {
                    fs::metadata(path).and_then(|about| about.modified()).is_ok_and(|at| at >= read)
                };
                files.iter().rposition(|(_, path)| is_later(path)).unwrap_or(0)
            }
        };
        self.file = open(&files[next].1)?;
        self.offset = 0;
        self.begun.clear();
        Ok(true)
    }
}

/// The present file and those put aside last, each with its size, and the size of the present one.
fn recent(path: &Path) -> io::Result<(Vec<(File, u64)>, u64)> {
    let _lock = lock(path);
    let present = open(path)?;
    let offset = present.metadata()?.len();
    let (mut files, mut bytes) = (vec![(present, offset)], offset);
    for number in 1.. {
        match File::open(aside(path, number)) {
            Ok(file) if bytes < SEARCHED_BYTES => {
                let size = file.metadata()?.len();
                files.push((file, size));
                bytes += size;
            }
            _ => break,
        }
    }
    Ok((files, offset))
}

/// The last lines that are wanted, in their order.
fn last(files: &[(File, u64)], count: usize, wanted: impl Fn(&[u8]) -> Verdict) -> io::Result<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut searched = 0;
    for (file, size) in files {
        let mut position = *size;
        let mut tail = Vec::new();
        while position > 0 && searched < SEARCHED_BYTES && found.len() < count {
            let length = position.min(BLOCK_BYTES);
            (position, searched) = (position - length, searched + length);
            let mut block = vec![0; length as usize];
            file.read_exact_at(&mut block, position)?;
            block.append(&mut tail);
            // Where the first line begins is known only at the begin of the file.
            let begin = if position == 0 { 0 } else { first_line(&block) };
            for line in block[begin..].split_inclusive(|byte| *byte == b'\n').rev() {
                match wanted(line) {
                    Verdict::Take if found.len() < count => found.push(line.to_owned()),
                    Verdict::Take | Verdict::Skip => {}
                    Verdict::Stop => searched = SEARCHED_BYTES,
                }
            }
            if begin <= LINE_BYTES {
                tail = block;
                tail.truncate(begin);
            }
        }
    }
    found.reverse();
    Ok(found.concat())
}
