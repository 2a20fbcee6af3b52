//! How the agent's orders reach a rank that is busy: one place to stop whatever it is doing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringmaster_proto::v1::Generation;

use crate::collective::Aborter;
use crate::collective::tcp::AbortFlag;
use crate::control::agent::Command;
use crate::control::coordinator::RanksClient;

/// Shared by the control thread, which gives orders, and the compute thread, which follows them.
#[derive(Debug)]
pub(crate) struct Interrupt {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
    client: RanksClient,
}

#[derive(Debug)]
struct State {
    /// The newest generation this rank was told to join.
    newest: Generation,
    flag: AbortFlag,
    ring: Option<Aborter>,
}

impl Interrupt {
    /// Returns the interrupt of a rank that was started for `generation`.
    pub(crate) fn new(generation: Generation, client: RanksClient) -> Self {
        let state = State { newest: generation, flag: AbortFlag::new(), ring: None };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            client,
        }
    }

    /// Carries out an order, on the control thread.
    pub(crate) fn obey(&self, command: &Command) {
        match command {
            Command::Regenerate(generation) => self.regenerate(*generation),
            Command::Stop { graceful: true, .. } => self.request_stop(),
            Command::Stop { graceful: false, reason } => {
                tracing::info!(%reason, "told to end now");
                ringmaster_agent::ffi::exit_now(ringmaster_agent::exit::SUCCESS);
            }
        }
    }

    /// Asks for a stop at the next step boundary, together with all other ranks.
    pub(crate) fn request_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    fn regenerate(&self, generation: Generation) {
        let mut state = self.lock();
        if generation <= state.newest {
            return;
        }
        state.newest = generation;
        let reason = format!("generation {generation} begins");
        state.flag.set(&reason);
        if let Some(ring) = state.ring.take() {
            ring.abort(&reason);
        }
        self.changed.notify_all();
        self.client.interrupt();
    }

    /// Returns the newest generation this rank was told to join.
    pub(crate) fn newest_generation(&self) -> Generation {
        self.lock().newest
    }

    /// Whether the job should stop at the next step boundary.
    pub(crate) fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Returns the flag that ends the attempt `generation`; already set if that is stale.
    pub(crate) fn arm(&self, generation: Generation) -> AbortFlag {
        let mut state = self.lock();
        state.flag = AbortFlag::new();
        state.ring = None;
        if state.newest > generation {
            state.flag.set(&format!("generation {} begins", state.newest));
        }
        state.flag.clone()
    }

    /// Lets the control thread end this ring's collectives.
    pub(crate) fn attach(&self, ring: Aborter) {
        let mut state = self.lock();
        match state.flag.get() {
            Some(reason) => ring.abort(&reason),
            None => state.ring = Some(ring),
        }
    }

    /// Waits for an order to join a generation above `current`; none when `patience` runs out.
    pub(crate) fn next_generation(
        &self,
        current: Generation,
        patience: Duration,
    ) -> Option<Generation> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while state.newest <= current {
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(state.newest)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
