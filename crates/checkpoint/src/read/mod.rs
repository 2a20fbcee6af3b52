//! Reading: a checkpoint chosen and loaded, the names in a folder, one object brought to a file.
//!
//! Modules in reading order: `fetch` (an object in chunks, each verified as it comes), `choose` (the newest
//! checkpoint that is what its manifest says), `listing` and `download`.

mod choose;
mod download;
mod fetch;
mod listing;

pub use choose::{Chosen, Loaded, choose};
pub(crate) use choose::{Verdict, examine};
pub use download::download;
pub use listing::Listing;
