//! What a database holds, table by table, in the terms that all databases share.

use Kind::{Bytes, Flag, Integer, Text};

/// A table, as it is archived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// The same in every database.
    pub(crate) name: &'static str,
    /// Without those that a database makes of the others.
    pub(crate) columns: &'static [Column],
    /// The columns of its key, by which rows are put in order.
    pub(crate) key: &'static [&'static str],
    /// The column whose values are counted up and never given twice.
    pub(crate) counter: Option<&'static str>,
    /// Whether an empty database has rows in it.
    pub(crate) has_first_rows: bool,
}

/// A column, and what is in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Bytes that the first archives didn't know: a row of none is archived without them, now as then.
    pub(crate) later: bool,
}

/// What a column holds, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Integer,
    Flag,
    Bytes,
}

/// What stands in a column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Nothing,
    Text(String),
    Integer(i64),
    Flag(bool),
    Bytes(Vec<u8>),
}

impl Value {
    /// In a column that is `later`, where a row is archived without it.
    pub(crate) const LEFT_OUT: Self = Self::Bytes(Vec::new());

    /// Of the memory that it takes beside itself.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Nothing | Self::Integer(_) | Self::Flag(_) => 0,
        }
    }
}

impl Table {
    /// The table of this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        TABLES.iter().find(|table| table.name == name)
    }
}

const fn column(name: &'static str, kind: Kind) -> Column {
    Column { name, kind, later: false }
}

const fn later(name: &'static str) -> Column {
    Column { name, kind: Bytes, later: true }
}

const fn table(name: &'static str, key: &'static [&'static str], columns: &'static [Column]) -> Table {
    Table { name, columns, key, counter: None, has_first_rows: false }
}

/// A lease is held anew by each that takes it, in terms that grow: those of two databases are joined.
pub(crate) const LEASES: &str = "leases";
/// Its one row tells the version of the handlers, which is 1 in an empty database.
pub(crate) const TABLE_VERSION: &str = "table_version";

/// All tables. One that others refer to comes before them.
pub(crate) static TABLES: &[Table] = &[
    table(
        "files",
        &["reference"],
        &[
            column("reference", Text),
            column("size", Integer),
            column("stored_size", Integer),
            column("encoding", Text),
            column("content_type", Text),
            column("stored", Flag),
            column("node", Text),
            column("stored_sha256", Text),
            column("created_at_ms", Integer),
        ],
    ),
    table(
        "sites",
        &["host", "path"],
        &[
            column("host", Text),
            column("path", Text),
            column("reference", Text),
            column("content_type", Text),
            column("updated_at_ms", Integer),
        ],
    ),
    table(
        "tokens",
        &["id"],
        &[
            column("id", Text),
            column("secret_sha256", Bytes),
            column("host", Text),
            column("path_prefix", Text),
            column("max_bytes", Integer),
            column("quota_bytes", Integer),
            column("uses", Integer),
            column("expires_at_ms", Integer),
            column("uses_taken", Integer),
            column("bytes_taken", Integer),
            column("created_at_ms", Integer),
        ],
    ),
    table(
        "uploads",
        &["id"],
        &[
            column("id", Text),
            column("state", Text),
            column("token", Text),
            column("host", Text),
            column("path", Text),
            column("reserved_bytes", Integer),
            column("reference", Text),
            column("existed", Flag),
            column("begun_at_ms", Integer),
            column("watch", Text),
        ],
    ),
    table("handlers", &["name"], HANDLER),
    table("former_handlers", &["name", "since"], FORMER_HANDLER),
    Table {
        has_first_rows: true,
        ..table(
            "handler_versions",
            &["version"],
            &[
                column("version", Integer),
                column("changed_at_ms", Integer),
                column("operator", Text),
                column("what", Text),
            ],
        )
    },
    Table { has_first_rows: true, ..table(TABLE_VERSION, &["version"], &[column("version", Integer)]) },
    Table {
        counter: Some("version"),
        ..table(
            "builds",
            &["version"],
            &[
                column("version", Integer),
                column("host", Text),
                column("complete", Flag),
                column("digest", Text),
                column("assets", Integer),
                column("bytes", Integer),
                column("deployed_at_ms", Integer),
            ],
        )
    },
    table(
        "assets",
        &["build", "path"],
        &[
            column("build", Integer),
            column("path", Text),
            column("content_type", Text),
            column("identity", Bytes),
            column("gzip", Bytes),
            column("brotli", Bytes),
        ],
    ),
    table(
        "members",
        &["pool", "id"],
        &[
            column("pool", Text),
            column("id", Text),
            column("address", Text),
            column("zone", Text),
            column("instance", Text),
            column("revision", Integer),
        ],
    ),
    Table {
        has_first_rows: true,
        ..table(
            LEASES,
            &["name"],
            &[
                column("name", Text),
                column("holder", Text),
                column("term", Integer),
                column("ttl_ms", Integer),
                column("ended", Flag),
            ],
        )
    },
    table(
        "event_log",
        &["position"],
        &[
            column("position", Integer),
            column("kept_at_ms", Integer),
            column("end_bytes", Integer),
            column("event", Bytes),
        ],
    ),
    Table {
        has_first_rows: true,
        ..table("event_head", &["position"], &[column("position", Integer), column("bytes", Integer)])
    },
    table("event_keys", &["key"], &[column("key", Bytes), column("kept_at_ms", Integer)]),
    Table {
        counter: Some("number"),
        ..table(
            "due_events",
            &["number"],
            &[
                column("number", Integer),
                column("due_at_ms", Integer),
                column("key", Bytes),
                column("event", Bytes),
            ],
        )
    },
    table(
        "subscriptions",
        &["name"],
        &[
            column("name", Text),
            column("patterns", Text),
            column("position", Integer),
            column("created_at_ms", Integer),
        ],
    ),
    table(
        "dead_events",
        &["subscription", "position"],
        &[
            column("subscription", Text),
            column("position", Integer),
            column("attempts", Integer),
            column("died_at_ms", Integer),
            column("event", Bytes),
        ],
    ),
    table(
        "join_tokens",
        &["id"],
        &[
            column("id", Text),
            column("secret_sha256", Bytes),
            column("kind", Text),
            column("pools", Text),
            column("uses", Integer),
            column("expires_at_ms", Integer),
            column("created_at_ms", Integer),
            column("created_by", Text),
            column("revoked", Flag),
        ],
    ),
    table(
        "join_token_uses",
        &["token", "node", "key_sha256"],
        &[column("token", Text), column("node", Text), later("key_sha256"), column("used_at_ms", Integer)],
    ),
    table(
        "revocations",
        &["name"],
        &[column("name", Text), column("operator", Text), column("at_ms", Integer)],
    ),
];

const HANDLER: &[Column] = &[
    column("name", Text),
    column("host", Text),
    column("path", Text),
    column("key", Text),
    column("pool", Text),
    column("placement", Integer),
    column("disabled", Flag),
    column("since", Integer),
];

const FORMER_HANDLER: &[Column] = &[
    column("name", Text),
    column("since", Integer),
    column("until", Integer),
    column("host", Text),
    column("path", Text),
    column("key", Text),
    column("pool", Text),
    column("placement", Integer),
    column("disabled", Flag),
];
