//! Compiles the .proto files with protox, so that no protoc is needed on the machine.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["seed", "operator", "datastore", "understudy", "events", "event_log", "enrolment"]
        .map(|name| format!("protoplex/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // For the test that each has a row in the table of permissions.
    let methods = descriptors.file.iter().flat_map(|file| {
        file.service.iter().flat_map(|service| {
            service.method.iter().map(|it| format!("/{}.{}/{}", file.package(), service.name(), it.name()))
        })
    });
    let methods = methods.collect::<Vec<_>>().join("\n");
    std::fs::write(Path::new(&std::env::var("OUT_DIR")?).join("methods"), methods)?;
    // Made once for all who follow, which may be thousands.
    let shared = ["table", "invalidate"].map(|field| format!(".protoplex.v1.FollowReply.{field}"));
    let configured =
        shared.iter().fold(tonic_prost_build::configure(), |configured, path| configured.bytes(path));
    configured.compile_fds(descriptors)?;
    Ok(())
}
