//! Drain and tasks.
