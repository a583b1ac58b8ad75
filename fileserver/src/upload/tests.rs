//! The upload side against a real datastore and a real directory, with processes that end wherever they are told to.

mod crash;
mod formats;
mod over_http;
mod rig;
mod rows;
mod tus;
