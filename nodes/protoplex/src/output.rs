//! What commands print: aligned text for a person, JSON for a script.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::json;

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

/// Why the process ends with this exit code, on standard error; in JSON one line.
pub(crate) fn fail(json: bool, message: &str, exit_code: u8) {
    let in_json = || json!({ "error": { "message": message, "exit_code": exit_code } }).to_string();
    tell(&if json { in_json() } else { format!("protoplex: {message}") });
}

/// The same for what is no failure.
pub(crate) fn warn(json: bool, message: &str) {
    let in_json = || json!({ "warning": { "message": message } }).to_string();
    tell(&if json { in_json() } else { format!("protoplex: {message}") });
}

/// An error with its causes, each said once: many texts have that of their cause in them.
pub(crate) fn whole(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// No column is made wider than this for the sake of a few long cells.
const MAX_COLUMN: usize = 64;

/// Rows in columns as wide as their widest cell, two spaces apart. What could lead a terminal astray is escaped.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| harmless(cell))).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count().min(MAX_COLUMN));
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names come from strangers: control characters move a terminal's cursor, and bidirectional ones the reader's eye.
pub(crate) fn harmless(text: &str) -> String {
    let bidirectional =
        |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let astray = |c: char| c.is_control() || bidirectional(c);
    let escape = |c: char| if astray(c) { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// A file size, a count: `1 file`, `2 files`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let path = std::path::PathBuf::from("key.pem");
        let source = io::Error::from_raw_os_error(17);
        let error: anyhow::Error = protoplex_wire::identity::IdentityError::File { path, source }.into();
        assert_eq!(whole(&error), "key.pem: File exists (os error 17)");
        assert_eq!(whole(&error.context("no")), "no: key.pem: File exists (os error 17)");
        assert_eq!(whole(&anyhow::anyhow!("b").context("a")), "a: b");
    }

    #[test]
    fn columns_are_aligned_and_end_clean() {
        let rows = [["a".into(), "bb".into()], ["ccc".into(), String::new()]];
        assert_eq!(columns(&rows), "a    bb\nccc\n");
        let rows = [["a\u{202e}\u{1b}[2J".into(), "b".into()]];
        assert_eq!(columns(&rows), "a\\u{202e}\\u{1b}[2J  b\n");
        let rows = [["x".repeat(1000), "b".into()], ["y".into(), "b".into()]];
        assert_eq!(columns(&rows).lines().nth(1).unwrap().len(), MAX_COLUMN + 3);
    }
}
