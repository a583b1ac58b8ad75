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

/// Reads what [`write`] wrote; nothing where there is no file. Lines that can't be understood are left out.
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
pub(crate) fn write(file: &Path, hints: &[Hint]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let new = file.with_extension("new");
    let mut out = BufWriter::new(File::create(&new)?);
    for Hint { pool, key, member, epoch } in hints {
        serde_json::to_writer(&mut out, &(epoch, pool, member, key))?;
        out.write_all(b"\n")?;
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(new, file)
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
        write(&file, &hints).unwrap();
        assert_eq!(read(&file).unwrap(), hints);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, &text[..text.len() - 5]).unwrap();
        assert_eq!(read(&file).unwrap(), hints[..1]);
    }
}
