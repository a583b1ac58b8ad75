//! What the environment says: `PROTOPLEX_` variables, of which an empty one counts for nothing, and those that nobody reads.

use std::env;

use clap::builder::Resettable;
use clap::{Arg, Command, CommandFactory, FromArgMatches};

use crate::cli::Cli;
use crate::handler::similar;
use crate::settings::has_key;

const PREFIX: &str = "PROTOPLEX_";
/// Only a process that another one of ours has started has it: that one has said what there is to say.
const STARTED: &str = "PROTOPLEX_CONTROL";
/// Those that are no option's.
const OTHERS: [&str; 4] =
    [STARTED, "PROTOPLEX_OPERATOR", "PROTOPLEX_EVENT_ATTEMPT", "PROTOPLEX_EVENT_POSITION"];
/// What orchestrators tell of a service that is called as we are.
const SERVICES: [&str; 3] = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"];
const SERVICE_PORT: &str = "_PORT";

/// The command line, with the environment for what it doesn't say.
///
/// # Errors
/// What can't be meant; or help that was asked for.
pub(crate) fn parse() -> Result<Cli, clap::Error> {
    let mut command =
        without_empty(Cli::command(), &|name| env::var(name).is_ok_and(|value| value.is_empty()));
    let mut matches = command.try_get_matches_from_mut(env::args_os())?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Units and compose files set variables to nothing where they have nothing to say.
fn without_empty(command: Command, is_empty: &dyn Fn(&str) -> bool) -> Command {
    let unset = |arg: Arg| match arg.get_env().and_then(|name| name.to_str()) {
        Some(name) if is_empty(name) => arg.env(Resettable::Reset),
        _ => arg,
    };
    command.mut_args(unset).mut_subcommands(|sub| without_empty(sub, is_empty))
}

/// The variables that are ours by their name and say something.
pub(crate) fn variables() -> impl Iterator<Item = (String, String)> {
    let ours = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    ours.filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
}

/// What to say of those that nobody reads.
pub(crate) fn warnings() -> Vec<String> {
    if env::var_os(STARTED).is_some() { Vec::new() } else { unread(variables()) }
}

fn unread(variables: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let mut known = OTHERS.map(str::to_owned).to_vec();
    name_options(&Cli::command(), &mut known);
    let is_unread = |name: &str| {
        let is_setting = name.contains("__");
        let is_service = SERVICES.iter().any(|part| name.contains(part)) || name.ends_with(SERVICE_PORT);
        !is_setting && !is_service && !known.iter().any(|it| it == name)
    };
    let mut names: Vec<_> = variables.map(|(name, _)| name).filter(|name| is_unread(name)).collect();
    names.sort();
    let told = |name: String| {
        let words = |name: &str| name.strip_prefix(PREFIX).unwrap_or_default().to_owned();
        let options: Vec<_> = known.iter().map(|name| words(name)).collect();
        let option = similar(&words(&name), options.iter().map(String::as_str));
        let meant = setting(&name).or_else(|| Some(format!("{PREFIX}{}", option?)));
        match meant {
            Some(meant) => format!("{name} is not read: did you mean {meant}?"),
            None => format!(
                "{name} is not read: settings have two underscores for a dot, as PROTOPLEX_PROXY__CHILDREN"
            ),
        }
    };
    names.into_iter().map(told).collect()
}

fn name_options(command: &Command, names: &mut Vec<String>) {
    names.extend(command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned())));
    command.get_subcommands().for_each(|sub| name_options(sub, names));
}

/// The setting that is meant where an underscore, or two of them, should be a dot.
fn setting(name: &str) -> Option<String> {
    let words: Vec<_> = name.strip_prefix(PREFIX)?.split('_').collect();
    let gaps = words.len().checked_sub(1)?;
    let pairs = (0..gaps).flat_map(|one| (one..gaps).map(move |other| [one, other]));
    let spelt = |dots: [usize; 2]| {
        let mut spelt = PREFIX.to_owned();
        for (at, word) in words.iter().enumerate() {
            spelt.push_str(word);
            if at < gaps {
                spelt.push_str(if dots.contains(&at) { "__" } else { "_" });
            }
        }
        spelt
    };
    pairs.map(spelt).find(|spelt| has_key(spelt))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str) -> Vec<String> {
        unread(std::iter::once((name.to_owned(), "4".to_owned())))
    }

    #[test]
    fn a_variable_that_nobody_reads_is_told_with_what_may_be_meant() {
        for (name, meant) in [
            ("PROTOPLEX_PROXY_CHILDREN", "PROTOPLEX_PROXY__CHILDREN"),
            ("PROTOPLEX_DRAIN_DRAIN_GRACE_MS", "PROTOPLEX_DRAIN__DRAIN_GRACE_MS"),
            ("PROTOPLEX_FILESERVER_S3_BUCKET", "PROTOPLEX_FILESERVER__S3__BUCKET"),
            ("PROTOPLEX_SEEDS", "PROTOPLEX_SEED"),
        ] {
            assert_eq!(told(name), [format!("{name} is not read: did you mean {meant}?")]);
        }
        assert!(told("PROTOPLEX_FOO")[0].contains("two underscores"), "{:?}", told("PROTOPLEX_FOO"));
    }

    #[test]
    fn what_is_read_and_what_orchestrators_tell_is_no_mistake() {
        for name in [
            "PROTOPLEX_DATA",
            "PROTOPLEX_TOKEN",
            "PROTOPLEX_JOIN_FILE",
            "PROTOPLEX_OPERATOR",
            "PROTOPLEX_EVENT_ATTEMPT",
            "PROTOPLEX_PROXY__CHILDREN",
            "PROTOPLEX_PORT",
            "PROTOPLEX_PORT_8080_TCP_ADDR",
            "PROTOPLEX_PROXY_SERVICE_HOST",
        ] {
            assert_eq!(told(name), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn an_option_of_an_empty_variable_is_as_if_it_were_not_set() {
        let read = |is_empty: &dyn Fn(&str) -> bool| {
            let command = without_empty(Cli::command(), is_empty);
            let mut names = Vec::new();
            name_options(&command, &mut names);
            names
        };
        assert!(read(&|_| true).is_empty());
        assert_eq!(
            read(&|name| name == "PROTOPLEX_JOIN").iter().filter(|name| *name == "PROTOPLEX_JOIN").count(),
            0
        );
        assert!(read(&|_| false).contains(&"PROTOPLEX_JOIN".to_owned()));
    }
}
