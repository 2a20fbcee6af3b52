//! What the end-to-end tests share: binaries of the current sources, tiny data sets, tiny jobs.
//!
//! Modules in reading order: [`binaries`] (built first, build id compared), [`tiny`] (shards and a
//! model that train in seconds), [`job`] (a manifest, its runs and what they left behind),
//! [`processes`] (they end with this one), [`frozen`] (one that does not end at all), [`network`] (what a
//! node's processes see of the others), [`cluster`] (a coordinator with agents), [`skips`] (tests that lack what they need), [`python`]
//! (environments), [`s3`] (a real S3 server), [`proxy`] (what misbehaves in front of it),
//! [`faulty_store`] (a store that fails as a test says), [`logged`](mod@logged) (what a piece of code logs),
//! [`web`] (a store that can be away), [`timing`] (what must not take long), [`slow`] (jobs that must be left
//! alone), [`faults`] (what is done to a cluster, and how long its job takes to train again), [`unrest`] (what
//! is done to a cluster that must not be taken for a fault).

pub mod binaries;
pub mod cluster;
pub mod faults;
pub mod faulty_store;
pub mod frozen;
pub mod job;
pub mod logged;
pub mod network;
pub mod processes;
pub mod proxy;
pub mod python;
pub mod s3;
pub mod skips;
pub mod slow;
pub mod steps;
pub mod timing;
pub mod tiny;
pub mod unrest;
pub mod web;
