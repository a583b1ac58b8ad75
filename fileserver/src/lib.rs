//! The fileserver: app builds from memory, stored files by reference or by virtual host and path from the disk cache or
//! the storage behind it, and uploads.

pub mod host;
pub mod path;

pub mod compress;
pub mod digest;
pub mod object;
pub mod reference;
