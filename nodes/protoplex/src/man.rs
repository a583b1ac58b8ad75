//! `protoplex man` and `protoplex completions`: made from the same description as `--help`.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};

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
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name).render(&mut page)?;
    fs::write(&path, page).with_context(|| format!("{}", path.display()))?;
    for sub in command.get_subcommands() {
        write_page(folder, sub, &format!("{name}-{}", sub.get_name()))?;
    }
    Ok(())
}

/// Prints the completions of a shell.
pub(crate) fn completions(shell: clap_complete::Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "protoplex", &mut script);
    output::write(&script)
}
