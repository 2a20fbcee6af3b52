//! How a rank gets into a ring, and how all ranks of a ring get one state.
//!
//! Modules in reading order: `join` (the coordinator's answer, and the connections it leads to), `data`
//! (whether all read the same), `state`
//! (whose state all go on from, and how it is received or loaded),
//! `pretrained` (the weights of step 0), `links` (how fast a new ring's connections are) and `left` (how the last
//! ring ended).

mod data;
mod join;
pub(crate) mod left;
mod links;
mod pretrained;
mod state;
