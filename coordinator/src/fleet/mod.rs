//! The one task that owns jobs, nodes and generations.
//!
//! Everything the coordinator knows lives in `Cluster`, a plain value without IO and without a
//! clock of its own. The task in `actor` feeds it what arrives (in batches), lets it settle (a
//! level-triggered comparison of what should run with what is seen to run), makes all changes
//! durable in one flush, and only then sends messages and answers. So nobody ever hears of a
//! transition that a crash could undo, and a request may be repeated at any time.
//!
//! Modules in reading order, each using only what comes after it: `actor` (the task), `handle` (what may
//! be asked), `settle_timer` (when it settles), `settling` (desired, observed, difference), `cluster`
//! (what is known), `nodes` (agents, what they run, who gets which seat), `jobs` (a job and its
//! transitions), `batch` (what is about to be made durable and told), `config`, `rings` (the ranks that
//! train together), `error`.

mod actor;
mod batch;
mod cluster;
mod config;
mod error;
mod handle;
mod jobs;
mod nodes;
mod rings;
mod settle_timer;
mod settling;

pub use actor::{Task, start};
pub use config::Config;
pub use error::Error;
pub use handle::{Handle, ReadGuard};
pub use jobs::{RolledBack, Submission};
pub use nodes::Lease;
pub use rings::Deadlines;

use batch::Batch;
use error::Reply;
use jobs::{AVOIDED_FOR, Charge, Dial, Identity, Job, Jobs, LeftFor, Loss, Point, RankEnd};
