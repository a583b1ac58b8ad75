//! Handlers and builds as this seed knows them, in the order in which they are tried.

use protoplex_wire::pattern::HostPattern;
use protoplex_wire::proto::{Build, Handler, LoadRoutesReply};

/// What is known of routes; swapped whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    /// Of the handlers; 0 before they are known.
    pub(crate) version: u64,
    /// Disabled ones among them.
    pub(crate) handlers: Vec<Handler>,
    pub(crate) builds: Vec<Build>,
}

impl Routes {
    pub(crate) fn new(loaded: LoadRoutesReply) -> Self {
        let mut handlers = loaded.handlers;
        handlers.sort_by_cached_key(|handler| (HostPattern::parse(&handler.host).ok(), handler.path.clone()));
        Self { version: loaded.table_version, handlers, builds: loaded.builds }
    }

    /// Those that requests follow, as the routing table has them.
    pub(crate) fn in_force(&self) -> Vec<Handler> {
        let enabled = self.handlers.iter().filter(|handler| !handler.disabled);
        enabled.map(|handler| Handler { since: 0, ..handler.clone() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_hosts_come_first_and_disabled_handlers_stay_behind() {
        let handler =
            |host: &str, disabled| Handler { host: host.into(), since: 3, disabled, ..Handler::default() };
        let hosts = [("*", false), ("*.example.com", false), ("a.com", true), ("example.com", false)];
        let handlers = hosts.map(|(host, disabled)| handler(host, disabled)).to_vec();
        let routes = Routes::new(LoadRoutesReply { handlers, ..LoadRoutesReply::default() });
        let hosts: Vec<_> = routes.handlers.iter().map(|handler| handler.host.as_str()).collect();
        assert_eq!(hosts, ["a.com", "example.com", "*.example.com", "*"]);
        let in_force = routes.in_force();
        assert!(in_force.len() == 3 && in_force.iter().all(|handler| handler.since == 0), "{in_force:?}");
    }
}
