//! What is read, and the exact words for what is not.

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Whole {
    proxy: Proxy,
    log: telemetry::Settings,
    handler: Vec<Handler>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Proxy {
    port: u16,
    host: String,
    children: u32,
    listen: Vec<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Handler {
    name: String,
    placement: Placement,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Placement {
    Owned,
    Hash,
}

impl Default for Proxy {
    fn default() -> Self {
        Self { port: 8080, host: "localhost".to_owned(), children: 2, listen: Vec::new() }
    }
}

/// Reads a text as `protoplex.toml`; the folder that it is in is cut from errors.
fn read(
    text: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, toml::Value)],
) -> Result<(Whole, Problems), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("protoplex.toml");
    std::fs::write(&file, text).unwrap();
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let flags: Vec<_> = flags.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
    let folder = format!("{}/", folder.path().display());
    let (whole, problems) = load(&[], Some(&file), environment, &flags)
        .map_err(|error: ConfigError| error.to_string().replace(&folder, ""))?;
    if problems.found.is_empty() {
        Ok((whole, problems))
    } else {
        Err(problems.finish().unwrap_err().to_string().replace(&folder, ""))
    }
}

#[test]
fn nothing_given_is_all_defaults() {
    let (whole, problems) = load::<Whole>(&[], None, std::iter::empty(), &[]).unwrap();
    assert_eq!(whole, Whole::default());
    problems.finish().unwrap();
}

#[test]
fn flags_win_over_the_environment_and_it_over_the_file() {
    let text = "[proxy]\nport = 1\nhost = \"file\"\nchildren = 1\n";
    let environment = [
        ("PROTOPLEX_PROXY__HOST", "environment"),
        ("PROTOPLEX_PROXY__CHILDREN", "4"),
        ("PROTOPLEX_DATA", "ignored"),
    ];
    let flags = [("proxy.children", toml::Value::Integer(6)), ("log.level", "debug".into())];
    let (whole, _) = read(text, &environment, &flags).unwrap();
    assert_eq!(
        whole.proxy,
        Proxy { port: 1, host: "environment".to_owned(), children: 6, listen: Vec::new() }
    );
    assert_eq!(whole.log.level, "debug");
}

#[test]
fn values_of_the_environment_are_toml_where_they_read_as_it() {
    let lists = read("", &[("PROTOPLEX_PROXY__LISTEN", "[\"a\", \"b\"]")], &[]).unwrap();
    assert_eq!(lists.0.proxy.listen, ["a", "b"]);
    let quoted = read("", &[("PROTOPLEX_PROXY__HOST", "'8080'")], &[]).unwrap();
    assert_eq!(quoted.0.proxy.host, "8080");
    let empty = read("", &[("PROTOPLEX_PROXY__HOST", ""), ("PROTOPLEX_PROXY__PORT", "")], &[]).unwrap();
    assert_eq!(empty.0.proxy, Proxy::default());
    let injected = read("", &[("PROTOPLEX_PROXY__HOST", "a\nport = 1")], &[]).unwrap();
    assert_eq!((injected.0.proxy.host.as_str(), injected.0.proxy.port), ("a\nport = 1", 8080));
}

#[test]
fn each_mistake_is_told_with_its_place() {
    let table = [
        ("[proxy]\nprot = 1\n", "protoplex.toml:2: unknown key \"prot\", did you mean \"port\"?"),
        ("[proxi]\n", "protoplex.toml:1: unknown key \"proxi\", did you mean \"proxy\"?"),
        (
            "\n[proxy]\n\nzzz = 1\n",
            "protoplex.toml:4: unknown key \"zzz\", expected \"port\", \"host\", \"children\" or \"listen\"",
        ),
        ("[proxy]\nport = \"x\"\n", "protoplex.toml:2: proxy.port: invalid type: string \"x\", expected u16"),
        (
            "[proxy]\nport = 70000\n",
            "protoplex.toml:2: proxy.port: invalid value: integer `70000`, expected u16",
        ),
        ("[proxy]\nport = 1\nport = 2\n", "protoplex.toml:3: duplicate key"),
        ("[proxy]\nport = \n", "protoplex.toml:2: string values must be quoted, expected literal string"),
        ("[proxy\n", "protoplex.toml:1: unclosed table, expected `]`"),
        ("[[handler]]\nname = \"a\"\n", "protoplex.toml:1: missing key \"placement\""),
        (
            "[[handler]]\nname = \"a\"\nplacement = \"owner\"\n",
            "protoplex.toml:3: unknown value \"owner\", did you mean \"owned\"?",
        ),
        (
            "[log]\nformat = \"xml\"\n",
            "protoplex.toml:2: unknown value \"xml\", expected \"auto\", \"text\" or \"json\"",
        ),
    ];
    for (text, message) in table {
        assert_eq!(read(text, &[], &[]).unwrap_err(), message, "of {text:?}");
    }
}

#[test]
fn each_of_several_mistakes_is_told() {
    let text =
        "[proxy]\nprot = 1\nport = \"x\"\nchildren = 3\n[log]\nformat = \"xml\"\n[[handler]]\nname = \"a\"\n";
    let told = read(text, &[("PROTOPLEX_PROXY__LISTEN", "[1]")], &[]).unwrap_err();
    let lines: Vec<_> = told.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(
        lines,
        [
            "protoplex.toml:2:",
            "protoplex.toml:3:",
            "protoplex.toml:6:",
            "protoplex.toml:7:",
            "PROTOPLEX_PROXY__LISTEN:"
        ]
    );
}

#[test]
fn the_defaults_of_a_command_yield_to_everything() {
    let defaults = [("proxy.children".to_owned(), 2.into()), ("proxy.port".to_owned(), 3.into())];
    let environment = [("PROTOPLEX_PROXY__CHILDREN".to_owned(), "7".to_owned())];
    let (whole, _) = load::<Whole>(&defaults, None, environment.into_iter(), &[]).unwrap();
    assert_eq!((whole.proxy.children, whole.proxy.port), (7, 3));
}

#[test]
fn mistakes_in_overrides_name_them() {
    let table = [
        (
            ("PROTOPLEX_PROXY__CHILDRN", "4"),
            "PROTOPLEX_PROXY__CHILDRN: unknown key \"childrn\", did you mean \"children\"?",
        ),
        (
            ("PROTOPLEX_PROXY__PORT", "many"),
            "PROTOPLEX_PROXY__PORT: invalid type: string \"many\", expected u16",
        ),
        (
            ("PROTOPLEX_PROXY__LISTEN", "[1]"),
            "PROTOPLEX_PROXY__LISTEN: invalid type: integer `1`, expected a string",
        ),
    ];
    for (variable, message) in table {
        assert_eq!(read("[proxy]\nport = 1\n", &[variable], &[]).unwrap_err(), message);
    }
    let flags = [("proxy.port", toml::Value::Integer(-1))];
    let message = "option proxy.port: invalid value: integer `-1`, expected u16";
    assert_eq!(read("", &[("PROTOPLEX_PROXY__PORT", "5")], &flags).unwrap_err(), message);
}

#[test]
fn unreadable_files_are_named() {
    let missing = load::<Whole>(&[], Some(Path::new("/nonexistent/protoplex.toml")), std::iter::empty(), &[])
        .unwrap_err();
    assert_eq!(missing.to_string(), "/nonexistent/protoplex.toml: No such file or directory (os error 2)");
    let folder = load::<Whole>(&[], Some(Path::new("/")), std::iter::empty(), &[]).unwrap_err();
    assert_eq!(folder.to_string(), "/: Is a directory (os error 21)");
    let long = read(&"#".repeat(2 << 20), &[], &[]).unwrap_err();
    assert_eq!(long, "protoplex.toml: longer than 1 MiB");
}

#[test]
fn all_problems_are_told_together_each_with_its_place() {
    let text = "[proxy]\nport = 0\nlisten = [\n  \"a\",\n  \"b\",\n]\n";
    let (_, mut problems) = read(text, &[("PROTOPLEX_PROXY__CHILDREN", "0")], &[]).unwrap();
    problems.add("proxy.port", "must not be 0");
    problems.add("proxy.children", "must be at least 1");
    problems.add("proxy.listen.1", "is no address");
    problems.add("proxy.host", "is the default, and wrong");
    problems.add("elsewhere", "was never set");
    assert_eq!(problems.check("proxy.port", "7".parse::<u16>()), Some(7));
    assert_eq!(problems.check("proxy.port", "x".parse::<u16>()), None);
    let told = problems.finish().unwrap_err().to_string();
    let lines: Vec<_> =
        told.lines().map(|line| line.rsplit_once('/').map_or(line, |(_, line)| line)).collect();
    assert_eq!(
        lines,
        [
            "protoplex.toml:1: proxy.host: is the default, and wrong",
            "protoplex.toml:2: proxy.port: must not be 0",
            "protoplex.toml:2: proxy.port: invalid digit found in string",
            "protoplex.toml:5: proxy.listen.1: is no address",
            "PROTOPLEX_PROXY__CHILDREN: proxy.children: must be at least 1",
            "elsewhere: was never set",
        ]
    );
}
