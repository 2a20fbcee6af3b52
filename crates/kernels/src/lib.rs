//! The loops that touch every element: of a tile of dot products, of the flat buffers, of what is reduced
//! between ranks, of weights in a file. On plain slices, without libtorch.
//!
//! They are a crate of their own because they alone must be compiled for speed, with vector instructions;
//! what calls them hands over whole buffers. So no loop is in anything that is public and generic: that
//! would be compiled with its caller.
//!
//! Modules in reading order: [`tile`] (the losses' passes), [`adamw`] and [`norm`] (a step of the optimizer),
//! [`reduce`] (what a ring adds up), [`convert`] (numbers of files), [`digest`] (a snapshot), `ffi` (the
//! widest instructions of the machine).

pub mod adamw;
pub mod convert;
pub mod digest;
mod ffi;
pub mod norm;
pub mod reduce;
pub mod tile;
