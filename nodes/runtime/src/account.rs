//! The user that a node works as where it is started as root.
//!
//! Root is needed for one thing only, to bind ports below 1024. So a process that is started as root does all else as that
//! user from the beginning ([`Account::assume`]): what it makes belongs to the user, what the user can't read is told at
//! the start, and no link in a folder of the user's leads root astray. It is root again only while it binds ([`as_root`]),
//! and never more once it has all it needs ([`Account::settle`]). Only `up` keeps the way back, for the nodes that it
//! starts.

use std::ffi::{CString, OsString};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{
    Gid, Group, Uid, User, getegid, geteuid, getuid, initgroups, seteuid, setresgid, setresuid,
};
use rustix::fs::{Mode, OFlags, fchown};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A user of this machine, and the group that its processes are in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// Why an account can't be had.
#[derive(Debug, Error)]
pub enum AccountError {
    /// There is no such user on this machine.
    #[error("there is no user {0:?} on this machine")]
    NoUser(String),
    /// There is no such group on this machine.
    #[error("there is no group {0:?} on this machine")]
    NoGroup(String),
    /// Users and groups can't be looked up.
    #[error("{name:?} can't be looked up: {source}")]
    Lookup {
        /// Of the user or group.
        name: String,
        /// What the system says.
        source: Errno,
    },
    /// This process is somebody else's, and not root's.
    #[error(
        "the configuration has user = {user:?}, and only root can become somebody else (this is uid {uid}): start it as \
         root or as {user}, or leave `user` out"
    )]
    NotRoot {
        /// Who is wanted.
        user: String,
        /// Who it is.
        uid: u32,
    },
    /// The system refuses.
    #[error("can't become {user:?}: {source}")]
    Refused {
        /// Who is wanted.
        user: String,
        /// What the system says.
        source: Errno,
    },
    /// The data directory can't be made for it.
    #[error("{}: {source}", path.display())]
    Data {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Account {
    /// The account of a user, by name; in the user's own group unless another one is named.
    ///
    /// # Errors
    /// There is no such user, or no such group.
    pub fn find(user: &str, group: Option<&str>) -> Result<Self, AccountError> {
        let lookup = |name: &str, source| AccountError::Lookup { name: name.to_owned(), source };
        let found = User::from_name(user).map_err(|source| lookup(user, source))?;
        let found = found.ok_or_else(|| AccountError::NoUser(user.to_owned()))?;
        let gid = match group {
            None => found.gid,
            Some(name) => {
                let group = Group::from_name(name).map_err(|source| lookup(name, source))?;
                group.ok_or_else(|| AccountError::NoGroup(name.to_owned()))?.gid
            }
        };
        Ok(Self { name: found.name, uid: found.uid.as_raw(), gid: gid.as_raw() })
    }

    /// Does everything as this account from here on, but for what is done [`as_root`]. The data directory is made for it
    /// where it is missing. All threads of the process are meant; best there is but one.
    ///
    /// # Errors
    /// This process is neither root's nor the account's own, or the system refuses.
    pub fn assume(&self, data: &Path) -> Result<(), AccountError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        if !getuid().is_root() {
            let is_ours = geteuid() == uid && getegid() == gid;
            let user = self.name.clone();
            let other = || AccountError::NotRoot { user, uid: geteuid().as_raw() };
            return if is_ours { Ok(()) } else { Err(other()) };
        }
        let become_it = || {
            // A node of `up` has root for its real user alone.
            seteuid(Uid::from_raw(0))?;
            initgroups(&CString::new(self.name.as_str()).map_err(|_| Errno::EINVAL)?, gid)?;
            setresgid(gid, gid, gid)?;
            seteuid(uid)
        };
        become_it().map_err(|source| self.refused(source))?;
        self.make(data).map_err(|source| AccountError::Data { path: data.to_owned(), source })
    }

    /// Gives up the way back to root, for good.
    pub(crate) fn settle(&self) -> Result<(), AccountError> {
        let uid = Uid::from_raw(self.uid);
        setresuid(uid, uid, uid).map_err(|source| self.refused(source))
    }

    fn refused(&self, source: Errno) -> AccountError {
        AccountError::Refused { user: self.name.clone(), source }
    }

    /// Makes the data directory, as root only where the account has no right to, and nobody else either: there it can't
    /// meddle with what is made.
    fn make(&self, data: &Path) -> io::Result<()> {
        match DirBuilder::new().recursive(true).mode(0o700).create(data) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            made => return made,
        }
        as_root(|| {
            if let Some(parent) = data.parent() {
                make_as_root(parent)?;
            }
            match DirBuilder::new().mode(0o700).create(data) {
                // It is for whoever made it to say whose it is.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                made => made?,
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let folder = File::from(rustix::fs::open(data, flags, Mode::empty())?);
            let (uid, gid) = (rustix::fs::Uid::from_raw(self.uid), rustix::fs::Gid::from_raw(self.gid));
            Ok(fchown(folder, Some(uid), Some(gid))?)
        })
    }
}

/// Follows a path as far as it exists, and makes the rest of it: folders that only root can change from the first one to
/// the last, also those that links on the way lead through. Else somebody could have planted one.
fn make_as_root(path: &Path) -> io::Result<()> {
    let mut rest: Vec<_> = parts(&std::path::absolute(path)?);
    let (mut reached, mut links) = (PathBuf::from("/"), 0);
    belongs_to_root(&reached)?;
    while let Some(part) = rest.pop() {
        let next = reached.join(&part);
        let about = match next.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            about => Some(about?),
        };
        match about {
            None => {
                // Never one that somebody has just put there.
                DirBuilder::new().mode(0o755).create(&next)?;
                reached = next;
            }
            Some(about) if about.is_symlink() => {
                belongs_to_root(&next)?;
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                let target = next.read_link()?;
                if target.is_absolute() {
                    reached = PathBuf::from("/");
                }
                rest.extend(parts(&target));
            }
            _ if part == ".." => reached = reached.parent().unwrap_or(&reached).to_owned(),
            _ => {
                belongs_to_root(&next)?;
                reached = next;
            }
        }
    }
    Ok(())
}

/// Links on one way: as many as the system follows.
const MAX_LINKS: u32 = 40;

/// The last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let named = |part: Component<'_>| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        _ => None,
    };
    path.components().rev().filter_map(named).collect()
}

fn belongs_to_root(path: &Path) -> io::Result<()> {
    let about = path.symlink_metadata()?;
    let (others, sticky) = (about.mode() & 0o022 != 0, about.mode() & 0o1000 != 0);
    if about.uid() == 0 && (about.is_symlink() || !others || sticky) {
        return Ok(());
    }
    let why = format!(
        "can't be made by root, since others may change {}: make it, and give it to the user",
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// Gives up any way back to root: of one that was started by a process that keeps it, but has no account for its nodes any
/// more.
pub(crate) fn stay() -> Result<(), AccountError> {
    let uid = geteuid();
    let refused = |source| AccountError::Refused { user: format!("uid {uid}"), source };
    if getuid() == uid { Ok(()) } else { setresuid(uid, uid, uid).map_err(refused) }
}

/// Does one thing as root, where this process was started so and has assumed an account; else it is simply done.
pub fn as_root<T>(act: impl FnOnce() -> T) -> T {
    let user = geteuid();
    let can = getuid().is_root() && !user.is_root() && seteuid(Uid::from_raw(0)).is_ok();
    let done = act();
    if can {
        // From root to anybody: it can't fail, and to go on as root would be worse than to end.
        assert!(seteuid(user).is_ok(), "root can become anybody");
    }
    done
}

/// Whether this process is root's, or can become so again.
pub(crate) fn can_be_root() -> bool {
    getuid().is_root()
}

/// Whether this process works as root.
pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}
