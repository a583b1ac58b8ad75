//! `protoplex files list`.

use protoplex_wire::proto::{ListFilesRequest, Site};
use serde::Serialize;

use crate::cli::{Common, Files};
use crate::cluster::Cluster;
use crate::output::{columns, plural, print, tell};
use crate::units::show_size;

#[derive(Serialize)]
struct FileRow {
    host: String,
    path: String,
    size: u64,
    stored_size: u64,
    encoding: String,
    content_type: String,
    reference: String,
    /// False while the body is only on the fileserver that took it.
    stored: bool,
    updated_at_ms: i64,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Files) -> anyhow::Result<()> {
    let Files::List { host, prefix, limit } = command;
    let cluster = Cluster::find(common)?;
    let mut datastore = cluster.datastore().await?;
    let mut request = ListFilesRequest {
        host: host.unwrap_or_default(),
        prefix: prefix.unwrap_or_default(),
        limit,
        after: String::new(),
    };
    let mut rows = Vec::new();
    let more = loop {
        let reply = cluster.answer(datastore.list_files(request.clone())).await?;
        rows.extend(reply.sites.into_iter().map(FileRow::from));
        if rows.len() >= limit as usize {
            break rows.len() > limit as usize || !reply.next.is_empty();
        }
        if reply.next.is_empty() {
            break false;
        }
        request.after = reply.next;
    };
    rows.truncate(limit as usize);
    print(common.json, &rows, |rows| table(rows))?;
    if more {
        tell(&format!("protoplex: there are more than these {limit}; --limit says how many are listed"));
    }
    Ok(())
}

fn table(rows: &[FileRow]) -> String {
    let head = ["HOST", "PATH", "SIZE", "STORED", "ENCODING", "STATE"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        let state = if row.stored { "stored" } else { "stored locally" };
        [
            row.host.clone(),
            row.path.clone(),
            show_size(row.size),
            show_size(row.stored_size),
            row.encoding.clone(),
            state.to_owned(),
        ]
    });
    let table = columns(&std::iter::once(head).chain(cells).collect::<Vec<_>>());
    format!("{table}{}", plural(rows.len(), "file"))
}

impl From<Site> for FileRow {
    fn from(site: Site) -> Self {
        let file = site.file.unwrap_or_default();
        Self {
            host: site.host,
            path: site.path,
            size: file.size,
            stored_size: file.stored_size,
            encoding: file.encoding,
            content_type: site.content_type,
            reference: file.reference,
            stored: file.stored,
            updated_at_ms: site.updated_at_ms,
        }
    }
}
