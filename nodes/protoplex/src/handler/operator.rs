//! Who changes something, by their own word. History tells it beside the name that their credentials are for, where that is
//! `local`, which may be anybody on that machine.

use rustix::process::getuid;

/// Says the name where it isn't the user's, as in pipelines.
const VARIABLE: &str = "PROTOPLEX_OPERATOR";
/// The most that is sent, in bytes.
const MAX_BYTES: usize = 255;

/// `ada@edge-1`.
pub(crate) fn name() -> String {
    let said = |name| std::env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
    let user = || ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(said);
    let mut name = said(VARIABLE).unwrap_or_else(|| {
        let user = user().unwrap_or_else(|| format!("uid {}", getuid().as_raw()));
        match std::fs::read_to_string("/proc/sys/kernel/hostname") {
            Ok(machine) => format!("{user}@{}", machine.trim()),
            Err(_) => user,
        }
    });
    name.truncate(name.floor_char_boundary(MAX_BYTES));
    name
}

/// The same as a header may have it.
pub(crate) fn in_header() -> String {
    plain(&name())
}

fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_no_character_that_none_may_have() {
        for (name, says) in [("ada@edge-1", "ada@edge-1"), ("uid 0@vm", "uid 0@vm"), ("\u{c4}da\n", "?da?")] {
            assert_eq!(plain(name), says);
        }
    }
}
