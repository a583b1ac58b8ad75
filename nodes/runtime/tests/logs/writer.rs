//! Appends numbered lines to a log, and says on standard output up to which number they are in it.

use std::error::Error;
use std::io::{self, Write};

use protoplex_runtime::log_file::{LogFile, Rotation};

/// Lines of a batch: from one to so many.
const BATCH: u64 = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, max_bytes, name, count] = &arguments[..] else {
        return Err("usage: log-writer PATH MAX_BYTES NAME COUNT".into());
    };
    let count: u64 = count.parse()?;
    let rotation = Rotation { max_bytes: max_bytes.parse()?, ..Rotation::default() };
    let mut log = LogFile::open(path.as_ref(), rotation)?;
    let mut written = 0;
    while written < count {
        let upto = count.min(written + 1 + written % BATCH);
        let lines: String =
            (written + 1..=upto).map(|number| format!("{name} {number} {:.>40}\n", "")).collect();
        log.append(lines.as_bytes())?;
        written = upto;
        writeln!(io::stdout(), "{written}")?;
    }
    Ok(())
}
