//! What the end-to-end tests share: binaries of the current sources, tiny data sets, tiny jobs.
//!
//! Modules in reading order: [`binaries`] (built first, build id compared), [`tiny`] (shards and a
//! model that train in seconds), [`job`] (a manifest, its runs and what they left behind),
//! [`cluster`] (a coordinator with agents), [`processes`] (who is still alive), [`s3`] (a real S3 server),
//! [`proxy`] (what misbehaves in front of it), [`faults`] (a cluster
//! of several hosts, what is done to it, and how long it takes to train again).

pub mod binaries;
pub mod cluster;
pub mod faults;
pub mod job;
pub mod processes;
pub mod proxy;
pub mod s3;
pub mod tiny;
