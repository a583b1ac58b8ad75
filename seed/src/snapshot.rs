//! Who has which key, on disk: after a restart of everything each key goes to its last owner again.
//!
//! These are hints, so a lost or torn file costs no correctness: owned keys are what live members report.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::ownership::Hint;

/// The file in the data directory.
pub(crate) fn file(data: &Path) -> PathBuf {
    data.join("seed").join("owners")
}

/// Reads what a [`Writer`] wrote; nothing where there is no file. Lines that can't be understood are left out.
pub(crate) fn read(file: &Path) -> io::Result<Vec<Hint>> {
    let lines = match File::open(file) {
        Ok(file) => BufReader::new(file).lines(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let hint = |line: &str| {
        let (epoch, pool, member, key) = serde_json::from_str(line).ok()?;
        Some(Hint { pool, key, member, epoch })
    };
    Ok(lines.map_while(Result::ok).filter_map(|line| hint(&line)).collect())
}

/// Writes one JSON array a line, and puts the file in place whole.
pub(crate) struct Writer {
    file: PathBuf,
    out: BufWriter<File>,
}

impl Writer {
    pub(crate) fn begin(file: PathBuf) -> io::Result<Self> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let out = BufWriter::new(File::create(file.with_extension("new"))?);
        Ok(Self { file, out })
    }

    pub(crate) fn add(&mut self, hints: &[Hint]) -> io::Result<()> {
        for Hint { pool, key, member, epoch } in hints {
            serde_json::to_writer(&mut self.out, &(epoch, pool, member, key))?;
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> io::Result<()> {
        self.out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(self.file.with_extension("new"), self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_a_torn_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        assert_eq!(read(&file).unwrap(), []);
        let hint = |key: &str, epoch| Hint {
            pool: "live".to_owned(),
            key: key.to_owned(),
            member: "live-1:0".to_owned(),
            epoch,
        };
        let hints = [hint("upload/\"odd\"", 7), hint("b\ttab", u64::MAX)];
        let mut writer = Writer::begin(file.clone()).unwrap();
        hints.iter().for_each(|hint| writer.add(std::slice::from_ref(hint)).unwrap());
        assert_eq!(read(&file).unwrap(), [], "it is not there before it is whole");
        writer.finish().unwrap();
        assert_eq!(read(&file).unwrap(), hints);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, &text[..text.len() - 5]).unwrap();
        assert_eq!(read(&file).unwrap(), hints[..1]);
    }
}
