//! `protoplex man` and `protoplex completions`: made from the same description as `--help`.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use clap::{Arg, Command, CommandFactory};

use crate::cli::Cli;
use crate::output;

/// Writes `protoplex.1` and a page for each command, `protoplex-handler-add.1`, to the folder.
pub(crate) fn write(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    let mut command = Cli::command();
    command.build();
    write_page(folder, &command, "protoplex")
}

fn write_page(folder: &Path, command: &Command, name: &str) -> anyhow::Result<()> {
    let path = folder.join(format!("{name}.1"));
    let man = clap_mangen::Man::new(command.clone()).title(name);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.extend(synopsis(command).into_bytes());
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let more = command.get_after_long_help().or(command.get_after_help());
    page.extend(more.map(|text| sections(&text.to_string())).unwrap_or_default().into_bytes());
    if command.get_version().is_some() {
        man.render_version_section(&mut page)?;
    }
    fs::write(&path, page).with_context(|| format!("{}", path.display()))?;
    for sub in command.get_subcommands() {
        write_page(folder, sub, &format!("{name}-{}", sub.get_name()))?;
    }
    Ok(())
}

/// With the values of options, which clap_mangen leaves out; those of every command are `[OPTIONS]`.
fn synopsis(command: &Command) -> String {
    let own = |arg: &&Arg| !arg.is_global_set() && !["help", "version"].contains(&arg.get_id().as_str());
    let (positional, options): (Vec<_>, Vec<_>) = command
        .get_arguments()
        .filter(own)
        .filter(|arg| !arg.is_hide_set())
        .partition(|arg| arg.is_positional());
    let mut words = vec!["[OPTIONS]".to_owned()];
    words.extend(
        options
            .into_iter()
            .map(|arg| if arg.is_required_set() { arg.to_string() } else { format!("[{arg}]") }),
    );
    words.extend(positional.into_iter().map(ToString::to_string));
    words.extend(command.has_subcommands().then(|| "<COMMAND>".to_owned()));
    let name = command.get_bin_name().unwrap_or(command.get_name());
    format!(".SH SYNOPSIS\n\\fB{}\\fR {}\n", escaped(name), escaped(&words.join(" ")))
}

/// What stands below the options in `--help`: prose is filled, and lines that are indented, or codes, stay as they are.
fn sections(text: &str) -> String {
    const LISTS: [(&str, &str); 2] = [("Examples:", "EXAMPLES"), ("Exit codes:", "EXIT STATUS")];
    let mut page = String::new();
    for paragraph in text.split("\n\n") {
        let list = LISTS.iter().find_map(|(begin, head)| Some((paragraph.strip_prefix(begin)?, head)));
        let head = if page.is_empty() { Some("NOTES") } else { None };
        let head = list.map(|(_, head)| *head).or(head);
        page.push_str(&head.map_or_else(|| ".PP\n".to_owned(), |head| format!(".SH \"{head}\"\n")));
        let paragraph = list.map_or(paragraph, |(rest, _)| rest.trim_matches('\n'));
        let is_code = list.is_some() || paragraph.lines().any(|line| line.starts_with("  "));
        let lines: String = paragraph.lines().map(|line| escaped(line) + "\n").collect();
        page.push_str(&if is_code { format!(".nf\n{lines}.fi\n") } else { lines });
    }
    page
}

/// A line of text, none of which troff takes for its own.
fn escaped(line: &str) -> String {
    let text = line.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// Prints the completions of a shell.
pub(crate) fn completions(shell: clap_complete::Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "protoplex", &mut script);
    output::write(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap()
    }

    #[test]
    fn examples_and_exit_codes_keep_their_lines() {
        let page = page("protoplex");
        let (_, rest) = page.split_once(".SH \"EXAMPLES\"\n.nf\n").unwrap();
        let (examples, rest) = rest.split_once(".fi\n").unwrap();
        assert!(examples.lines().count() > 5 && examples.contains("  protoplex up  "), "{examples}");
        let (_, status) = rest.split_once(".SH \"EXIT STATUS\"\n.nf\n").unwrap();
        assert!(status.starts_with(" 0 done") || status.starts_with("0 done"), "{status}");
        assert!(!page.contains("Examples:"), "{page}");
    }

    #[test]
    fn a_synopsis_has_the_values_of_options() {
        let page = page("protoplex-apply");
        let line = page.lines().skip_while(|line| *line != ".SH SYNOPSIS").nth(1).unwrap();
        assert!(line.starts_with("\\fBprotoplex apply\\fR [OPTIONS] "), "{line}");
        assert!(line.contains("[\\-\\-base <VERSION>]") && line.ends_with("<FILE>"), "{line}");
    }

    #[test]
    fn nothing_of_a_text_is_a_request_to_troff() {
        let text = sections("About \\d\n'quoted'\n\n  .code --x");
        assert_eq!(text, ".SH \"NOTES\"\nAbout \\ed\n\\&'quoted'\n.PP\n.nf\n  .code \\-\\-x\n.fi\n");
    }
}
