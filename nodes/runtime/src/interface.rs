//! What every node can be asked for by name: a table of methods, which is also what `inspect` tells of it.

use serde::Serialize;
use serde_json::{Map, Value};

/// What a method does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Ping,
    Status,
    Inspect,
    Metrics,
    Config,
    ChangeLogLevel,
    Reload,
    Restart,
    Start,
    Stop,
    Drain,
    Upgrade,
}

/// One method. It takes an object with these fields, and answers with any JSON.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Method {
    #[serde(skip)]
    pub(crate) call: Call,
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) params: &'static [Param],
    /// Whether it changes anything, so that only who may command may ask.
    pub(crate) is_command: bool,
}

/// A field of what a method takes.
#[derive(Debug, Serialize)]
pub(crate) struct Param {
    pub(crate) name: &'static str,
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    pub(crate) is_required: bool,
    pub(crate) about: &'static str,
}

/// What a field may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Any,
    Text,
    /// A list of such.
    Texts,
    /// Whole, from 0.
    Number,
    Flag,
}

impl Kind {
    fn admits(self, value: &Value) -> bool {
        match self {
            Self::Any => true,
            Self::Text => value.is_string(),
            Self::Texts => value.as_array().is_some_and(|all| all.iter().all(Value::is_string)),
            Self::Number => value.as_u64().is_some_and(|number| u32::try_from(number).is_ok()),
            Self::Flag => value.is_boolean(),
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Any => "any JSON",
            Self::Text => "a text",
            Self::Texts => "a list of texts",
            Self::Number => "a whole number from 0",
            Self::Flag => "true or false",
        }
    }
}

const fn param(name: &'static str, kind: Kind, is_required: bool, about: &'static str) -> Param {
    Param { name, kind, is_required, about }
}

const CHILD: Param = param("child", Kind::Number, false, "One child; without it all.");

const fn read(call: Call, name: &'static str, params: &'static [Param], about: &'static str) -> Method {
    Method { call, name, about, params, is_command: false }
}

const fn command(call: Call, name: &'static str, params: &'static [Param], about: &'static str) -> Method {
    Method { call, name, about, params, is_command: true }
}

/// All of them, as they are shown.
pub(crate) static METHODS: [Method; 12] = [
    read(
        Call::Ping,
        "ping",
        &[param("payload", Kind::Any, false, "What it shall answer.")],
        "Answers with what it was sent.",
    ),
    read(Call::Status, "status", &[], "The node, its children and how they are."),
    read(Call::Inspect, "inspect", &[], "This: what the node is, and what it can be asked for."),
    read(
        Call::Metrics,
        "metrics",
        &[param("prefixes", Kind::Texts, false, "Only those whose names begin with one of these.")],
        "What its processes have measured: names, labels and values.",
    ),
    read(Call::Config, "config", &[], "What its processes go by, without what is secret."),
    command(
        Call::ChangeLogLevel,
        "change_loglevel",
        &[
            param(
                "level",
                Kind::Text,
                true,
                "error, warn, info, debug, trace; also info,protoplex_proxy=debug.",
            ),
            param(
                "for_s",
                Kind::Number,
                false,
                "Seconds after which it is as it was; without it the next reload.",
            ),
        ],
        "Logs by another level from now on, in all its processes.",
    ),
    command(Call::Reload, "reload", &[], "Reads its configuration anew; every connection lives on."),
    command(Call::Restart, "restart", &[CHILD], "Replaces its children one by one, without an interruption."),
    command(Call::Start, "start", &[CHILD], "Starts children that were stopped or given up."),
    command(
        Call::Stop,
        "stop",
        &[CHILD, param("now", Kind::Flag, false, "Lets nothing finish.")],
        "Stops children in good order; their places stay.",
    ),
    command(
        Call::Drain,
        "drain",
        &[CHILD],
        "Takes it out of service for good: what is under way may finish.",
    ),
    command(
        Call::Upgrade,
        "upgrade",
        &[],
        "Goes on as the program that stands where its own was started from.",
    ),
];

/// What a node is asked for with success: one of a single process has no children to start, stop, restart, or name.
pub(crate) fn methods(is_solo: bool) -> Vec<Method> {
    let of_children = |method: &Method| matches!(method.call, Call::Restart | Call::Start | Call::Stop);
    let all = METHODS.into_iter().filter(|method| !is_solo || !of_children(method));
    let drains = |method: &Method| is_solo && method.call == Call::Drain;
    all.map(|method| if drains(&method) { Method { params: &[], ..method } } else { method }).collect()
}

/// The method of this name; the error names the nearest, and all.
pub(crate) fn named(name: &str) -> Result<&'static Method, String> {
    if let Some(method) = METHODS.iter().find(|method| method.name == name) {
        return Ok(method);
    }
    let names: Vec<_> = METHODS.iter().map(|method| method.name).collect();
    let meant = nearest(name, names.iter().copied());
    Err(format!("there is no method {name:?}{meant}; there are {}", names.join(", ")))
}

impl Method {
    /// What a call brings, where the method can take that. An empty one is an object without fields.
    pub(crate) fn arguments(&self, text: &[u8]) -> Result<Map<String, Value>, String> {
        let text = if text.trim_ascii().is_empty() { b"{}" } else { text };
        let arguments: Map<String, Value> = serde_json::from_slice(text)
            .map_err(|error| format!("{} takes an object of JSON: {error}", self.name))?;
        for (name, value) in &arguments {
            let Some(param) = self.params.iter().find(|param| param.name == name) else {
                return Err(self.unknown(name));
            };
            if !param.kind.admits(value) {
                return Err(format!("{name} of {} is {}, not {value}", self.name, param.kind.in_words()));
            }
        }
        let missing =
            self.params.iter().find(|param| param.is_required && !arguments.contains_key(param.name));
        missing.map_or(Ok(arguments), |param| {
            Err(format!("{} needs {}, {}", self.name, param.name, param.kind.in_words()))
        })
    }

    fn unknown(&self, field: &str) -> String {
        let names: Vec<_> = self.params.iter().map(|param| param.name).collect();
        let meant = nearest(field, names.iter().copied());
        let known = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        format!("{} has no field {field:?}{meant}; it takes {known}", self.name)
    }
}

/// Names that are less alike are no slip of the pen.
const ALIKE: f64 = 0.6;

/// ", do you mean …", where one is alike.
fn nearest(wrong: &str, names: impl Iterator<Item = &'static str>) -> String {
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(wrong, name);
    let best = names.map(|name| (likeness(name), name)).max_by(|one, other| one.0.total_cmp(&other.0));
    best.filter(|(likeness, _)| *likeness >= ALIKE)
        .map_or_else(String::new, |(_, name)| format!(", do you mean {name}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_one_process_tells_of_no_children() {
        let names = |is_solo| methods(is_solo).iter().map(|method| method.name).collect::<Vec<_>>().join(" ");
        assert_eq!(names(true), "ping status inspect metrics config change_loglevel reload drain upgrade");
        assert_eq!(methods(false).len(), METHODS.len());
        let params = |is_solo| methods(is_solo).iter().find(|it| it.name == "drain").unwrap().params.len();
        assert_eq!((params(true), params(false)), (0, 1));
    }

    #[test]
    fn row_an_unknown_method_or_field_is_named_with_what_there_is() {
        assert!(named("ping").is_ok());
        let told = named("pnig").unwrap_err();
        assert!(
            told.starts_with("there is no method \"pnig\", do you mean ping?; there are ping, status"),
            "{told}"
        );
        assert!(!named("x").unwrap_err().contains("mean"));
        let level = named("change_loglevel").unwrap();
        let table = [
            (r#"{"levle":"info"}"#, "has no field \"levle\", do you mean level?; it takes level, for_s"),
            (r#"{"level":7}"#, "level of change_loglevel is a text, not 7"),
            (r#"{"level":"info","for_s":-1}"#, "a whole number from 0, not -1"),
            (r#"{"level":"info","for_s":4294967296}"#, "a whole number"),
            ("{}", "change_loglevel needs level, a text"),
            ("", "needs level"),
            ("[1]", "takes an object of JSON: invalid type"),
            ("{", "takes an object of JSON: EOF"),
        ];
        for (text, why) in table {
            let told = level.arguments(text.as_bytes()).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
        let told = named("metrics").unwrap().arguments(br#"{"prefixes":"process_"}"#).unwrap_err();
        assert!(told.contains("prefixes of metrics is a list of texts"), "{told}");
        let told = named("status").unwrap().arguments(br#"{"a":1}"#).unwrap_err();
        assert!(told.ends_with("it takes nothing"), "{told}");
        let good = level.arguments(br#"{"level":"info","for_s":60}"#).unwrap();
        assert_eq!(good["for_s"], 60);
        assert!(named("ping").unwrap().arguments(br#" {"payload":[null]} "#).is_ok());
    }
}
