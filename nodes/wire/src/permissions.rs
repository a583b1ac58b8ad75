//! Which kind may call what: one table for all gRPC methods. What has no row nobody may call.

use crate::identity::Kind;

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Also who has no certificate yet.
    Anybody,
    /// Whoever has a certificate of one of these kinds.
    Only(&'static [Kind]),
}

impl Access {
    /// Whether this kind may.
    #[must_use]
    pub fn includes(self, kind: Kind) -> bool {
        match self {
            Self::Anybody => true,
            Self::Only(kinds) => kinds.contains(&kind),
        }
    }
}

use Kind::{Backend, Datastore, Fileserver, Live, Operator, Proxy, Seed};

const ALL: &[Kind] = &Kind::ALL;
const NODES: &[Kind] = &[Seed, Datastore, Proxy, Fileserver, Live];
const FOLLOWERS: &[Kind] = &[Proxy, Fileserver, Live, Backend, Operator];
const UPLOADS: &[Kind] = &[Fileserver];
const PEOPLE: &[Kind] = &[Operator];
const SEEDS: &[Kind] = &[Seed];

/// A service, and who may call which of its methods.
type Row = (&'static str, &'static [(&'static [&'static str], Access)]);

const TABLE: &[Row] = &[
    ("protoplex.v1.Enrolment", &[(&["Enrol"], Access::Anybody), (&["Renew"], Access::Only(ALL))]),
    (
        "protoplex.v1.Seed",
        &[
            (&["Join"], Access::Only(NODES)),
            (&["Follow"], Access::Only(FOLLOWERS)),
            (&["FetchBuild"], Access::Only(&[Fileserver])),
        ],
    ),
    ("protoplex.v1.Understudy", &[(&["Leader"], Access::Only(ALL)), (&["TakeOver"], Access::Only(SEEDS))]),
    (
        "protoplex.v1.Operator",
        &[(
            &[
                "ChangeHandlers",
                "ListHandlers",
                "HandlerHistory",
                "HandlersAt",
                "Explain",
                "Deploy",
                "Status",
                "ListHotKeys",
                "CreateJoinToken",
                "ListJoinTokens",
                "RevokeJoinToken",
                "ChangeRevocation",
                "ListRevocations",
            ],
            Access::Only(PEOPLE),
        )],
    ),
    (
        "protoplex.v1.Events",
        &[(
            &["Publish", "Subscribe", "ListSubscriptions", "RemoveSubscription", "ListDeadEvents"],
            Access::Only(PEOPLE),
        )],
    ),
    (
        "protoplex.v1.EventLog",
        &[(
            &[
                "AppendEvents",
                "ReadEvents",
                "TrimEvents",
                "PostponeEvents",
                "DueEvents",
                "DropDue",
                "PutSubscription",
                "ListKeptSubscriptions",
                "MoveSubscriptions",
                "RemoveKeptSubscription",
                "BuryEvent",
                "ListBuried",
                "CountBuried",
            ],
            Access::Only(SEEDS),
        )],
    ),
    (
        "protoplex.v1.Datastore",
        &[
            (
                &["CheckUpload", "BeginUpload", "AbortUpload", "CompleteUpload", "MarkStored"],
                Access::Only(UPLOADS),
            ),
            (&["FindSite", "FindFile"], Access::Only(&[Fileserver, Operator])),
            (&["ListFiles", "CreateToken"], Access::Only(PEOPLE)),
            (&["PeekLease"], Access::Only(&[Proxy, Fileserver, Live, Backend, Operator, Seed])),
            (
                &[
                    "ChangeHandlers",
                    "HandlerHistory",
                    "HandlersAt",
                    "LoadRoutes",
                    "PutBuild",
                    "GetBuild",
                    "PutMember",
                    "RemoveMember",
                    "TakeLease",
                    "ReleaseLease",
                    "PutJoinToken",
                    "ListJoinTokens",
                    "RevokeJoinToken",
                    "RedeemJoinToken",
                    "ChangeRevocation",
                    "ListRevocations",
                ],
                Access::Only(SEEDS),
            ),
        ],
    ),
];

/// What is served over plain HTTP beside gRPC begins so: registration from outside.
const OUTSIDE: &str = "/v1/";

/// Who may call the method of this path, "/protoplex.v1.Seed/Join"; `None` where there is no such method.
#[must_use]
pub fn access(path: &str) -> Option<Access> {
    if path.starts_with(OUTSIDE) {
        return Some(Access::Only(&[Backend, Operator]));
    }
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let (_, rows) = TABLE.iter().find(|(name, _)| *name == service)?;
    rows.iter().find(|(methods, _)| methods.contains(&method)).map(|(_, access)| *access)
}

/// Of all services: the methods whose caller sends one message after the other, for as long as it likes.
const STREAMS: &str = include_str!(concat!(env!("OUT_DIR"), "/streams"));

/// Whether a call of this path brings one message, which may have a deadline. What is served over plain HTTP looks after
/// its bodies itself.
#[must_use]
pub fn has_one_message(path: &str) -> bool {
    path.starts_with("/protoplex.") && !STREAMS.lines().any(|stream| stream == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of all services, as the .proto files have them.
    const METHODS: &str = include_str!(concat!(env!("OUT_DIR"), "/methods"));

    #[test]
    fn every_method_has_a_row_and_every_row_a_method() {
        let methods: Vec<_> = METHODS.lines().collect();
        assert!(methods.len() > 50, "{methods:?}");
        for method in &methods {
            assert!(access(method).is_some(), "{method} has no row");
        }
        let rows = TABLE.iter().flat_map(|(service, rows)| {
            let names = rows.iter().flat_map(|(names, _)| names.iter());
            names.map(move |name| format!("/{service}/{name}"))
        });
        let mut seen = Vec::new();
        for row in rows {
            assert!(methods.contains(&row.as_str()), "{row} is no method");
            assert!(!seen.contains(&row), "{row} stands in the table twice");
            seen.push(row);
        }
    }

    #[test]
    fn links_and_whole_builds_have_no_deadline_and_all_else_has() {
        let streams: Vec<_> = METHODS.lines().filter(|path| !has_one_message(path)).collect();
        let mut names: Vec<_> =
            streams.iter().filter_map(|path| path.strip_prefix("/protoplex.v1.")).collect();
        names.sort_unstable();
        let sorted =
            ["Datastore/PutBuild", "Events/Subscribe", "Operator/Deploy", "Seed/Follow", "Seed/Join"];
        assert_eq!(names, sorted);
        assert!(!has_one_message("/v1/members"));
    }

    #[test]
    fn only_enrolling_needs_no_certificate_and_backends_may_do_next_to_nothing() {
        let open = |access: fn(Access) -> bool| {
            let of = |method: &&str| access(super::access(method).unwrap());
            METHODS.lines().filter(of).map(|method| method.rsplit(['.']).next().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(open(|access| access == Access::Anybody), ["Enrolment/Enrol"]);
        let mut backend = open(|access| access.includes(Backend));
        backend.sort_unstable();
        let may = ["Datastore/PeekLease", "Enrolment/Enrol", "Enrolment/Renew", "Seed/Follow"];
        assert_eq!(backend, [&may[..], &["Understudy/Leader"]].concat());
        assert_eq!(access("/protoplex.v1.Seed/Reboot"), None);
        assert_eq!(access("/metrics"), None);
    }
}
