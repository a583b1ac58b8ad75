//! The seed as other nodes meet it.
