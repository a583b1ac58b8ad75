//! Bodies as files below one directory, for a cluster on one machine.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::StorageError;
use crate::disk::blocking;
use crate::object::Meta;
use crate::reference::Reference;

/// `ROOT/ab/abcd…`: one file a body, in the one-file form.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    root: PathBuf,
}

impl Directory {
    /// The bodies below `root`, which is made when the first body comes.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Opens a body; its header and length are checked.
    pub(crate) async fn open(&self, reference: &Reference) -> Result<(Meta, File), StorageError> {
        let path = place(&self.root, reference);
        blocking(move || {
            let file = File::open(path).map_err(not_found)?;
            Ok((Meta::read_from(&file)?, file))
        })
        .await
    }

    /// Keeps a whole file: as a second link to it, or as a copy where it is on another file system.
    pub(crate) async fn put(&self, reference: &Reference, source: &Path) -> Result<(), StorageError> {
        let (source, place) = (source.to_owned(), place(&self.root, reference));
        blocking(move || keep(&source, &place)).await
    }
}

/// The file of a body below `root`. Two characters make 4,096 folders, enough to keep each of them short.
pub(crate) fn place(root: &Path, reference: &Reference) -> PathBuf {
    root.join(&reference.as_str()[..2]).join(reference.as_str())
}

fn not_found(error: io::Error) -> StorageError {
    if error.kind() == io::ErrorKind::NotFound { StorageError::NotFound } else { error.into() }
}

fn keep(source: &Path, place: &Path) -> Result<(), StorageError> {
    let file = File::open(source)?;
    Meta::read_from(&file)?;
    file.sync_all()?;
    let folder = place.parent().ok_or_else(|| io::Error::other("a body's place has no folder"))?;
    fs::create_dir_all(folder)?;
    match File::open(place).map(|present| Meta::read_from(&present)) {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(_)) => fs::remove_file(place)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    match fs::hard_link(source, place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy(source, place)?,
        linked => linked?,
    }
    sync_folder(folder)?;
    if let Some(root) = folder.parent() {
        sync_folder(root)?;
    }
    Ok(())
}

fn copy(source: &Path, place: &Path) -> io::Result<()> {
    let partial = place.with_extension(format!("{:016x}.part", rand::random::<u64>()));
    let copied = fs::copy(source, &partial)
        .and_then(|_| File::open(&partial)?.sync_all())
        .and_then(|()| fs::rename(&partial, place));
    if copied.is_err() {
        // What failed is told; that its remains could not be removed either would add nothing.
        let _ = fs::remove_file(&partial);
    }
    copied
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
