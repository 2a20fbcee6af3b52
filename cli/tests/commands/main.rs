//! The `ringmaster` command as people call it: what it says when what it was told cannot work.

#![allow(clippy::unwrap_used, missing_docs)]

mod addresses;
mod process;
mod stores;
