//! Rules of the workspace that no compiler checks.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Whom each crate may use: arrows point one way, and node crates never see each other.
const LAYERS: [(&str, &[&str]); 5] = [
    ("protoplex-wire", &[]),
    ("protoplex-runtime", &["protoplex-wire"]),
    ("protoplex-http", &["protoplex-runtime", "protoplex-wire"]),
    ("protoplex-testkit", &[]),
    ("protoplex", &["*"]),
];
const NODE_CRATES: &[&str] = &["protoplex-wire", "protoplex-runtime", "protoplex-http"];

/// Longest file of code, in lines, its tests not counted where they stand in a file of their own.
const MAX_FILE_LINES: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

#[test]
fn dependencies_point_one_way() {
    let mut command = MetadataCommand::new();
    command.manifest_path(root().join("Cargo.toml")).no_deps().other_options(["--offline".into()]);
    let metadata = command.exec().unwrap();
    let ours: HashSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    for package in &metadata.packages {
        let layer = LAYERS.iter().find(|(name, _)| *name == package.name.as_str());
        let may = layer.map_or(NODE_CRATES, |(_, may)| may);
        let uses = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        for used in uses.filter(|dependency| ours.contains(&dependency.name)) {
            assert!(
                may.contains(&"*") || may.contains(&used.name.as_str()),
                "{} uses {}",
                package.name,
                used.name
            );
        }
    }
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut faults = Vec::new();
    for file in rust_files(&root()) {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().count();
        let tests = file.to_string_lossy().contains("/tests");
        if lines > MAX_FILE_LINES && !tests {
            faults.push(format!("{}: {lines} lines, at most {MAX_FILE_LINES}", file.display()));
        }
        if !text.starts_with("//!") && !tests {
            faults.push(format!("{}: does not begin with what it is", file.display()));
        }
        if text.lines().any(|line| {
            line.trim_start().starts_with("#[allow(") || line.trim_start().starts_with("#![allow(")
        }) {
            faults.push(format!("{}: a bare allow; use expect with a reason", file.display()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
