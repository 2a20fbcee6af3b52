//! Tools for data sets: what a training set holds, whether it can be read, how it looks, and how it becomes shards.
//!
//! Modules in reading order: [`input`] (from words of a command line to an opened source), [`meter`] (how far long
//! work is), `walk` (all samples, read and worked on by all cores), `picture` and `look` (one sample), [`mod@stats`],
//! [`mod@verify`], [`mod@show`], [`mod@write`], and `page` (what HTML pages share).

mod error;
pub mod input;
mod look;
pub mod meter;
mod page;
mod picture;
pub mod show;
pub mod stats;
pub mod verify;
mod walk;
pub mod write;

#[cfg(test)]
mod tests;

pub use error::Error;
pub use input::{Input, Words};
pub use meter::Meter;
