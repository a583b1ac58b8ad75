//! What commands print: aligned text for a person, JSON for a script.

use std::io::{self, Write};

use serde::Serialize;

/// Prints `value` as JSON, or as what `text` makes of it.
pub(crate) fn print<T: Serialize>(json: bool, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
    let text = if json { serde_json::to_string_pretty(value)? } else { text(value) };
    if text.is_empty() { Ok(()) } else { write(format!("{}\n", text.trim_end()).as_bytes()) }
}

/// Writes to standard output. A reader that went away (`protoplex status | head -1`) has seen what it wanted.
pub(crate) fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// A line on standard error, which is no reason to fail where nobody reads it.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Rows in columns as wide as their widest cell, two spaces apart.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A file size, a count: `1 file`, `2 files`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_end_clean() {
        let rows = [["a".into(), "bb".into()], ["ccc".into(), String::new()]];
        assert_eq!(columns(&rows), "a    bb\nccc\n");
    }
}
