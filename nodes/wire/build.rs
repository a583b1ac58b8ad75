//! Compiles the .proto files with protox, so that no protoc is needed on the machine.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["seed", "operator", "datastore", "understudy", "events", "event_log"]
        .map(|name| format!("protoplex/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // Made once for all who follow, which may be thousands.
    let shared = ".protoplex.v1.FollowReply.table";
    tonic_prost_build::configure().bytes(shared).compile_fds(descriptors)?;
    Ok(())
}
