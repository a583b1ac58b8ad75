//! What a node is at, in one word: the same in `status` and in `top`.

/// What is known of a node besides its children.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition<'a> {
    /// Whether it has been heard of just now.
    pub(crate) answers: bool,
    pub(crate) draining: bool,
    pub(crate) ready: bool,
    /// Why it isn't ready, where it knows.
    pub(crate) reason: &'a str,
}

impl Condition<'_> {
    /// In supervisord's words, and one for who could run but lacks something. Of a node whose children are all at rest it is
    /// theirs.
    pub(crate) fn word<'s>(self, children: impl IntoIterator<Item = &'s str>) -> &'s str {
        let mut children = children.into_iter();
        let first = children.next();
        let at_rest = first.filter(|state| {
            matches!(*state, "STOPPED" | "EXITED" | "FATAL" | "BACKOFF")
                && children.all(|other| other == *state)
        });
        match at_rest {
            _ if !self.answers => "SILENT",
            _ if self.draining => "STOPPING",
            Some(state) => state,
            None if self.ready => "RUNNING",
            None if !self.reason.is_empty() => "WAITING",
            None => "STARTING",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_what_it_does_or_lacks() {
        let node = Condition { answers: true, draining: false, ready: false, reason: "" };
        let none: [&str; 0] = [];
        assert_eq!(node.word(none), "STARTING");
        let waiting = Condition { reason: "it has not joined a seed", ..node };
        assert_eq!(waiting.word(none), "WAITING");
        assert_eq!(waiting.word(["FATAL", "FATAL"]), "FATAL");
        assert_eq!(waiting.word(["RUNNING", "FATAL"]), "WAITING");
        assert_eq!(Condition { ready: true, ..waiting }.word(["RUNNING"]), "RUNNING");
        assert_eq!(Condition { draining: true, ..waiting }.word(["STOPPED"]), "STOPPING");
        assert_eq!(Condition { answers: false, ..waiting }.word(["STOPPED"]), "SILENT");
    }
}
