//! The task: batches in, durable changes, effects out.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::batch::Now;
use super::cluster::Cluster;
use super::config::Config;
use super::handle::{Call, Handle};
use super::settle_timer::SettleTimer;
use crate::logs::LogIndex;
use crate::state::{self, Loaded, Store};

/// Calls that may wait before a caller has to.
const QUEUE: usize = 1024;
/// Calls that share one flush at most.
const BATCH: usize = 512;

/// The fleet's task, running on the current runtime.
#[derive(Debug)]
pub struct Task {
    /// Absent once its result was taken.
    join: Option<tokio::task::JoinHandle<Result<(), state::Error>>>,
}

impl Task {
    /// Waits for its end: after `stop`, or because the database failed, after which nothing more
    /// may be acknowledged and only a restart helps. Once it has said so, it returns at once.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn ended(&mut self) -> Result<(), state::Error> {
        let Some(join) = &mut self.join else { return Ok(()) };
        let result = join.await;
        self.join = None;
        match result {
            Ok(result) => result,
            Err(panic) => {
                tracing::error!(%panic, "the fleet's task panicked");
                Err(state::Error::Closed)
            }
        }
    }
}

/// Starts the task; it ends when `stop` turns true or its sender is dropped. Ending drops every
/// session, watcher and waiting call.
pub fn start(
    config: Config,
    store: Store,
    loaded: Loaded,
    logs: LogIndex,
    stop: watch::Receiver<bool>,
) -> (Handle, Task) {
    let (sender, calls) = mpsc::channel(QUEUE);
    let tick = (config.lease / 20).clamp(Duration::from_millis(10), Duration::from_millis(250));
    let now = Now::read(&config);
    let cluster = Cluster::new(config, loaded, now);
    let join = tokio::spawn(run(cluster, store, logs, calls, tick, stop));
    (Handle::new(sender), Task { join: Some(join) })
}

async fn run(
    mut cluster: Cluster,
    store: Store,
    logs: LogIndex,
    mut calls: mpsc::Receiver<Call>,
    tick: Duration,
    mut stop: watch::Receiver<bool>,
) -> Result<(), state::Error> {
    let mut timer = SettleTimer::new(tick, Instant::now());
    loop {
        // ---- A batch: whatever waits, or nothing but the passing of time
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            received = calls.recv_many(&mut batch, BATCH) => {
                if received == 0 {
                    return Ok(());
                }
            }
            () = tokio::time::sleep_until(timer.next()) => {}
        }

        // ---- Decide, without IO
        let now = Now::read(&cluster.batch.config);
        cluster.begin(now);
        for call in batch {
            tracing::trace!(call = call.name, "taken up");
            // Ten thousand agents send as many heartbeats a second, and next to none of them matters.
            cluster.unsettled |= !call.is_heartbeat;
            (call.work)(&mut cluster);
        }
        timer.request(cluster.unsettled);
        if timer.is_due(now.at) || cluster.has_losses() {
            cluster.settle();
            let cost = cluster.settling_cost();
            if !cost.is_zero() {
                tokio::time::sleep(cost).await;
            }
            timer.settled(now.at, Instant::now());
        }

        // ---- Durable first, told afterwards
        let (changes, effects) = cluster.flush();
        if !changes.is_empty() {
            store.write(changes).await?;
        }
        for effect in effects {
            effect(&logs);
        }
    }
}
