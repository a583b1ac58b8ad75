//! The handlers that `up` gives a new cluster: channels go to live nodes, everything else to fileservers. Whoever runs each node
//! by itself adds them by two commands.

use std::path::Path;

use protoplex_wire::proto::{Handler, Placement};

/// In the order in which they are added.
pub(crate) fn handlers() -> [Handler; 2] {
    let handler = |name: &str, path: &str, key: &str, placement: Placement| Handler {
        name: name.to_owned(),
        host: "*".to_owned(),
        path: path.to_owned(),
        key: key.to_owned(),
        pool: name.to_owned(),
        placement: placement.into(),
        ..Handler::default()
    };
    [
        handler("live", "/.well-known/mercure", "{query.topic|form.topic}", Placement::Owned),
        handler("files", "/{*rest}", "{path}", Placement::Hash),
    ]
}

/// The commands that add them, for a shell.
pub(crate) fn commands(data: &Path) -> impl Iterator<Item = String> {
    handlers().into_iter().map(move |handler| {
        let placement = match handler.placement() {
            Placement::Hash => " --placement hash",
            _ => "",
        };
        let Handler { name, path, key, pool, .. } = handler;
        format!(
            "protoplex --data {} handler add {name} --path '{path}' --key '{key}' --pool {pool}{placement}",
            data.display()
        )
    })
}
