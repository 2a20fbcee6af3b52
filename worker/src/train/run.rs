//! A rank's life: join a generation, agree on the state, train, and start over when a peer is lost.
//!
//! [`run`] is the outer loop over generations, `Rank::attempt` one generation: `recover` says how it
//! begins, `steps` trains, `after_step` does what follows a step.

use std::net::TcpListener;
use std::time::Duration;

use ringmaster_agent::env::RankEnv;
use ringmaster_proto::v1::{Generation, JoinReply, Phase, StateSource};
use ringmaster_words as words;

use super::steps::Ended;
use crate::collective::Collective;
use crate::collective::counted::Counted;
use crate::collective::tcp::AbortFlag;
use crate::control::signals::Termination;
use crate::error::Error;
use crate::ffi;
use crate::rank::Rank;
use crate::recover::left::ring_loss;
use crate::report::{self, Run};
use crate::save::{Saving, Start};
use crate::split::even_counts;

/// Time a rank whose ring broke waits for the coordinator's next generation before it asks for one.
const REGROUP_PATIENCE: Duration = Duration::from_secs(5);

/// Trains until the job ends, over as many generations as that takes.
///
/// # Errors
/// What ends this process; [`Error::class`] says whose fault that is.
pub fn run(env: RankEnv, termination: Termination) -> Result<(), Error> {
    let mut rank = Rank::start(env, termination)?;
    let mut generation = rank.env.generation;
    if let Some(folder) = rank.folder.take() {
        folder.finish(&rank.history, generation)?;
    }
    loop {
        let Err(error) = rank.attempt(generation) else { return Ok(()) };
        rank.machine.tell_news();
        if !error.regroups() {
            return Err(error);
        }
        tracing::warn!(%generation, error = %words::chain(&error), "ring lost, waiting for the next generation");
        let was_told = rank.interrupt.newest_generation() > generation;
        // What an earlier ring was lost by stays, until a join has brought it to the coordinator.
        rank.left = ring_loss(generation, &error, was_told).or(rank.left.take());
        rank.control.status(|status| status.phase = Phase::Join.into());
        // Without an order nobody died and the ring broke all the same: joining once more tells the
        // coordinator, which then forms a new generation. It may be away; joining waits for it.
        if let Some(next) = rank.interrupt.next_generation(generation, REGROUP_PATIENCE) {
            generation = next;
        }
    }
}

impl Rank {
    /// One generation: form the ring, agree on the state, train to the end.
    fn attempt(&mut self, generation: Generation) -> Result<(), Error> {
        let interruptions = self.client.interruptions();
        let abort = self.interrupt.arm(generation);
        // The snapshot of an older generation can no longer be published.
        self.saving = None;
        self.control.status(|status| {
            status.phase = Phase::Join.into();
            status.generation = Some(generation);
            // Only the ring's first rank reports them, and that may be another one from now on.
            status.metrics = None;
        });
        let listener = TcpListener::bind((self.env.address.as_str(), 0))
            .map_err(|source| Error::Listen { address: self.env.address.clone(), source })?;
        // Waits at the coordinator until every seat that is taken has joined. An order to join a newer
        // generation ends the wait; `interruptions` was read before, so that none is missed.
        let reply = self.join(generation, &listener, interruptions)?;
        let collective = self.connect(generation, &listener, &reply, &abort)?;
        let collective: &dyn Collective = &Counted::begin(collective);
        self.interrupt.attach(collective.aborter());
        self.note_numeric_plan(&reply);
        self.in_ring(generation, &reply, &abort, collective)
    }

    /// [`Rank::attempt`]'s part inside a ring. A rank that fails by itself breaks the ring, so that
    /// its peers notice at once instead of waiting for it in their next collective.
    fn in_ring(
        &mut self,
        generation: Generation,
        reply: &JoinReply,
        abort: &AbortFlag,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let result = self.run_generation(generation, reply, abort, collective);
        if let Err(error) = &result {
            collective.aborter().abort(&words::chain(error));
            let own = collective.rank() as u32;
            if matches!(error, Error::WeightsDiffer { minority, .. } if minority.contains(&own)) {
                self.replica.agreed = None;
            }
        }
        result
    }

    fn run_generation(
        &mut self,
        generation: Generation,
        reply: &JoinReply,
        abort: &AbortFlag,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        // From here on every rank enters the same collectives in the same order: links, state, what was
        // missed, then step after step.
        let receives =
            reply.source() == StateSource::Stored || reply.receivers.contains(&reply.rank);
        self.control.status(|status| {
            status.phase = Phase::Load.into();
            // What it holds has no part in this ring: it must not count as progress of the job.
            if receives {
                status.step = 0;
            }
        });
        self.check_links(generation, reply, collective)?;
        self.compare_data(reply, collective)?;
        // Before the state is agreed on: survivors that are one step behind are then where the source is.
        if reply.apply_held {
            self.apply_held(generation)?;
        }
        self.agree_on_state(generation, reply, collective)?;
        self.control.status(|status| status.step = self.replica.applied);

        let counts = even_counts(self.job.batch.global as usize, collective.world_size());
        match collective.rank() {
            0 => self.open_run(generation, collective.world_size())?,
            // It may have been first in an earlier ring.
            _ => self.run = None,
        }
        let rolled_back_to = Some(reply.rolled_back_to.clone()).filter(|url| !url.is_empty());
        let start = Start {
            job: &self.job,
            env: &self.env,
            generation,
            client: &self.client,
            plan: &self.plan,
            dataset: &self.dataset,
            params: self.replica.clip.params(),
            memory: &self.snapshots,
            abort,
            history: &self.history,
            spared: rolled_back_to.into_iter().chain(self.loaded_from.clone()).collect(),
        };
        self.saving = Some(Saving::start(&start, collective));
        self.catch_up(generation, reply, collective)?;
        match self.train(generation, collective, &counts)? {
            Ended::Complete => self.finish(generation, collective),
            Ended::Stopped => self.stop(collective),
        }
    }

    fn open_run(&mut self, generation: Generation, world_size: usize) -> Result<(), Error> {
        if let Some(run) = &mut self.run {
            run.enter(generation, world_size)?;
            return self.write_down_last_step();
        }
        self.run = Some(Run::open(report::Options {
            runs_dir: &self.env.runs_dir,
            job_id: &self.env.job_id,
            generation,
            job: &self.job,
            world_size,
            versions: [("libtorch".to_owned(), ffi::LIBTORCH.to_owned())].into(),
        })?);
        self.write_down_last_step()
    }

    /// A rank 0 that died between applying a step and writing its metrics leaves that to the next;
    /// one that got the step from another rank, or applied it late, has not written it either.
    fn write_down_last_step(&mut self) -> Result<(), Error> {
        let (Some(run), Some(metrics)) = (&mut self.run, &self.replica.metrics) else {
            return Ok(());
        };
        if metrics.step == self.replica.applied && run.last_logged_step()? < metrics.step {
            run.step(metrics)?;
        }
        Ok(())
    }
}
