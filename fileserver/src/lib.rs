//! The fileserver: app builds from memory, stored files by reference or by virtual host and path from the disk cache or
//! the storage behind it, and uploads.
//!
//! A request meets the modules below in this order. Downloads and uploads share how a stored body looks ([`object`]) and
//! where it is kept ([`storage`]).

pub mod config;
pub mod serve;

mod host;
mod path;
mod request;

mod app_files;
mod credential;
mod datastore;
mod refusal;
mod registrations;
mod s3_files;
mod vhost_files;

mod answer;
mod conditional;
mod content;
mod inflate;
mod negotiate;
mod range;
mod stored;

mod cache;
mod disk;
mod evict;
mod object;
pub mod reference;
mod storage;

mod compress;
mod digest;
mod progress;
mod publish;
mod staging;
mod upload;
