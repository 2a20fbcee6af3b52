//! gRPC in and out: requests become calls of the fleet's handle, domain errors become statuses.
//!
//! Modules in reading order: `status` (the one mapping of errors), `submission` (manifests read, their mistakes
//! told), `jobs`, `rollback`, `fleet`, `ranks`.

mod fleet;
mod jobs;
mod ranks;
mod rollback;
mod status;
mod submission;

pub use fleet::FleetService;
pub use jobs::JobsService;
pub use ranks::RanksService;
pub use status::{log_status, to_status};

use tokio::sync::watch;

/// Waits until the coordinator stops: the flag turns true, or its owner is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
