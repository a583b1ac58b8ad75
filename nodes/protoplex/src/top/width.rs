//! What of the table a window has room for: whole columns and whole parts of a line, the weightiest.

use ratatui::text::Line;

use super::table::{BETWEEN, HEAD};

/// Between two columns.
const GAP: usize = 1;
/// In this order columns give way where the window is narrow. The first two never do.
const GIVE_WAY: [usize; 8] = [FILES, PID, UPTIME, CONNECTIONS, MEMORY, REQUESTS, CPU, NOTE];
const PID: usize = 2;
const UPTIME: usize = 3;
const CPU: usize = 4;
const MEMORY: usize = 5;
const FILES: usize = 6;
const CONNECTIONS: usize = 7;
const REQUESTS: usize = 8;
/// The last one: it has what is left, and counts for no more than a usual one is long.
pub(super) const NOTE: usize = 9;
const USUAL_NOTE: usize = 26;
/// So wide at least, so that columns don't move with each number.
const LEAST: [usize; HEAD.len()] = [10, 8, 6, 7, 5, 9, 5, 5, 6, 0];

/// The columns that are shown, in their order, and how wide each is.
pub(super) fn columns(rows: &[[String; HEAD.len()]], width: usize) -> Vec<(usize, usize)> {
    let head = HEAD.map(str::len);
    let mut columns: Vec<_> = (0..HEAD.len()).map(|at| (at, LEAST[at].max(head[at]))).collect();
    for row in rows {
        for ((at, width), cell) in columns.iter_mut().zip(row) {
            let most = if *at == NOTE { USUAL_NOTE } else { usize::MAX };
            *width = (*width).max(shown(cell).min(most));
        }
    }
    for gone in GIVE_WAY {
        if columns.iter().map(|(_, width)| width + GAP).sum::<usize>() <= width + GAP {
            break;
        }
        columns.retain(|(at, _)| *at != gone);
    }
    columns
}

/// As many of the parts, from the first on, as fit in a line.
pub(super) fn line(parts: &[String], between: &str, width: usize) -> String {
    let mut line = parts.first().cloned().unwrap_or_default();
    for part in parts.iter().skip(1) {
        let longer = format!("{line}{between}{part}");
        if shown(&longer) > width {
            break;
        }
        line = longer;
    }
    line
}

/// The line above: whose it is gives way first.
pub(super) fn overview(parts: &[String], width: usize) -> String {
    let name = "protoplex top  ";
    let whole = parts.join(BETWEEN);
    if shown(name) + shown(&whole) <= width { format!("{name}{whole}") } else { line(parts, BETWEEN, width) }
}

/// How many cells of a terminal it takes.
fn shown(text: &str) -> usize {
    Line::raw(text).width()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> [String; HEAD.len()] {
        [
            "  fileserver-eu-1:11",
            "RUNNING",
            "1234567",
            "0:01:00",
            "100.0",
            "123.0 MiB",
            "1000",
            "250",
            "12345",
            "leads, 12 keys",
        ]
        .map(str::to_owned)
    }

    fn heads(width: usize) -> Vec<&'static str> {
        columns(&[row()], width).into_iter().map(|(at, _)| HEAD[at]).collect()
    }

    #[test]
    fn columns_give_way_whole_and_the_lightest_first() {
        let all = ["PROCESS", "STATE", "PID", "UPTIME", "CPU%", "MEMORY", "FILES", "CONN", "REQ/S", ""];
        assert_eq!(heads(120), all);
        assert_eq!(heads(80), ["PROCESS", "STATE", "CPU%", "MEMORY", "CONN", "REQ/S", ""]);
        assert_eq!(heads(60), ["PROCESS", "STATE", "CPU%", "REQ/S", ""]);
        assert_eq!(heads(10), ["PROCESS", "STATE"]);
        for width in 30..120 {
            let columns = columns(&[row()], width);
            let taken: usize = columns.iter().map(|(_, width)| width + GAP).sum();
            assert!(taken <= width + GAP, "{width}: {columns:?}");
            assert!(columns.iter().all(|(at, width)| shown(&row()[*at]) <= *width), "{width}: {columns:?}");
        }
    }

    #[test]
    fn a_long_note_drives_no_other_column_out() {
        let mut long = row();
        long[NOTE] = "x".repeat(300);
        assert_eq!(columns(&[long], 120).len(), HEAD.len());
    }

    #[test]
    fn a_line_has_what_fits_from_its_first_part_on() {
        let parts = ["no seed leads", "1 of 9 nodes ready", "10 req/s"].map(str::to_owned);
        assert_eq!(overview(&parts, 80), "protoplex top  no seed leads · 1 of 9 nodes ready · 10 req/s");
        assert_eq!(overview(&parts, 50), "no seed leads · 1 of 9 nodes ready · 10 req/s");
        assert_eq!(overview(&parts, 40), "no seed leads · 1 of 9 nodes ready");
        assert_eq!(overview(&parts, 3), "no seed leads");
    }
}
