//! What the datastore has to tell of its own changes: each event is made in the transaction of the change that it is of,
//! so that there is never one without the other.

use protoplex_wire::cloud_event::{CloudEvent, EventData};
use protoplex_wire::proto::{Build, ChangeHandlersRequest, CompleteUploadRequest, NewEvent, StoredFile};
use serde::Serialize;
use serde_json::json;

/// The source of all these events.
const SOURCE: &str = "/datastore";

/// An upload was recorded: from here on it is not lost.
pub(crate) fn upload_finished(
    request: &CompleteUploadRequest,
    file: &StoredFile,
    existed: bool,
    watch: &str,
) -> NewEvent {
    let event = event(
        "upload.finished",
        &json!({
            "host": request.host,
            "path": request.path,
            "reference": file.reference,
            "size": file.size,
            "content_type": request.content_type,
            "existed": existed,
        }),
    );
    new(if watch.is_empty() { event } else { event.with_subject(format!("upload/{watch}")) })
}

/// A file's body is in the storage.
pub(crate) fn file_stored(file: &StoredFile) -> NewEvent {
    let data = json!({
        "reference": file.reference,
        "size": file.size,
        "stored_size": file.stored_size,
        "encoding": file.encoding,
        "content_type": file.content_type,
    });
    new(event("file.stored", &data).with_subject(format!("file/{}", file.reference)))
}

/// A build is the current one of its host.
pub(crate) fn build_deployed(build: &Build) -> NewEvent {
    let data = json!({
        "host": build.host,
        "version": build.version,
        "digest": build.digest,
        "assets": build.assets,
        "bytes": build.bytes,
    });
    new(event("build.deployed", &data).with_subject(format!("build/{}", build.version)))
}

/// The table of handlers has a new version.
pub(crate) fn handlers_changed(request: &ChangeHandlersRequest, version: i64) -> NewEvent {
    let put: Vec<_> = request.put.iter().map(|handler| handler.name.as_str()).collect();
    let data = json!({
        "version": version,
        "operator": request.operator,
        "what": request.what,
        "put": put,
        "removed": request.remove,
    });
    new(event("handlers.changed", &data).with_subject(format!("handlers/{version}")))
}

fn event(topic: &str, data: &impl Serialize) -> CloudEvent {
    let data = EventData::json(data).unwrap_or_default();
    CloudEvent::new(SOURCE, topic).with_data("application/json", data)
}

fn new(event: CloudEvent) -> NewEvent {
    let key = event.key().to_vec();
    // What is in it was checked when it was stored; names that no attribute can have leave only the subject out.
    let json = event.to_json().or_else(|_| serde_json::to_vec(&event));
    NewEvent { key, event: json.unwrap_or_default() }
}
