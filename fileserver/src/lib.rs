//! The fileserver: app builds from memory, stored files by reference or by virtual host and path from the disk cache or
//! the storage behind it, and uploads.

pub mod host;
pub mod path;

mod answer;
mod conditional;
mod negotiate;
mod range;

mod inflate;
mod stored;
pub mod cache;
pub mod evict;
pub mod storage;
pub mod object;
pub mod reference;
mod disk;

pub mod compress;
pub mod digest;
