//! Compiles the .proto files with protox, so that no protoc is needed on the machine.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["seed", "operator", "datastore", "understudy", "events", "event_log", "enrolment"]
        .map(|name| format!("protoplex/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let methods = || {
        descriptors.file.iter().flat_map(|file| {
            let services = file.service.iter();
            services.flat_map(|service| {
                let path = |name: &str| format!("/{}.{}/{name}", file.package(), service.name());
                service.method.iter().map(move |it| (path(it.name()), it.client_streaming()))
            })
        })
    };
    let out = std::env::var("OUT_DIR")?;
    // For the test that each has a row in the table of permissions.
    let all: Vec<_> = methods().map(|(path, _)| path).collect();
    std::fs::write(Path::new(&out).join("methods"), all.join("\n"))?;
    let streams: Vec<_> = methods().filter(|(_, streams)| *streams).map(|(path, _)| path).collect();
    std::fs::write(Path::new(&out).join("streams"), streams.join("\n"))?;
    // Made once for all who follow, which may be thousands.
    let shared = ["table", "invalidate"].map(|field| format!(".protoplex.v1.FollowReply.{field}"));
    let configured =
        shared.iter().fold(tonic_prost_build::configure(), |configured, path| configured.bytes(path));
    configured.compile_fds(descriptors)?;
    Ok(())
}
