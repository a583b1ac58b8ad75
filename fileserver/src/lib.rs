//! The fileserver: app builds from memory, stored files by reference or by virtual host and path from the disk cache or
//! the storage behind it, and uploads.
//!
//! A request meets the modules below in this order. Downloads and uploads share how a stored body looks ([`object`]) and
//! where it is kept ([`storage`]).

pub mod config;
pub mod serve;

mod request;
mod host;
mod path;

mod app_files;
mod s3_files;
mod vhost_files;
mod registrations;
mod refusal;

mod answer;
mod conditional;
mod negotiate;
mod range;
mod content;
mod inflate;
mod stored;

mod cache;
mod evict;
mod storage;
mod object;
pub mod reference;
mod disk;

mod upload;
mod digest;
mod compress;
mod staging;
mod progress;
mod publish;
