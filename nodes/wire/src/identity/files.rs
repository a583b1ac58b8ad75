//! How secrets are written: for their owner alone, and whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::IdentityError;

/// Bytes of randomness in a secret.
pub(super) const SECRET_BYTES: usize = 32;

/// A secret that nobody has.
pub(crate) fn secret() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; SECRET_BYTES]>())
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> IdentityError + use<> {
    let path: PathBuf = path.to_owned();
    move |source| IdentityError::File { path, source }
}

pub(super) fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(at(path))
}

/// The same, or nothing where there is no such file.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, IdentityError> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(at(path)),
    }
}

/// Whether there is such a file, or may be one where this user can't look.
pub(super) fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap_or(true)
}

pub(super) fn private_folder(path: &Path) -> Result<(), IdentityError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

/// Waits until nobody else holds this, and keeps them from it until it is dropped, or the process ends however it may.
pub(super) fn lock(path: &Path) -> Result<File, IdentityError> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(at(path))?;
    file.lock().map_err(at(path))?;
    Ok(file)
}

/// Writes a file that isn't there yet.
pub(super) fn write_new(path: &Path, text: &str) -> Result<(), IdentityError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(at(path))
}

/// Writes a file in the place of the one that may be there: whoever reads has the old text or the new one.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), IdentityError> {
    let new = path.with_extension(format!("new-{}", std::process::id()));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&new)(error)),
        _ => {}
    }
    write_new(&new, text)?;
    fs::rename(&new, path).map_err(at(path))
}
