//! How a rank enters a generation: it joins, connects, and leaves with the state that all continue
//! from.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use ringmaster_proto::v1::{Generation, HeldState, JoinReply, JoinRequest, StateSource};

use super::Error;
use super::plan::NumericPlan;
use super::replica::Replica;
use super::train::Rank;
use crate::checkpoint;
use crate::collective::tcp::{AbortFlag, Options, Tcp, Tls};
use crate::collective::{Collective, Solo};

/// Time all peers have to connect once they know one another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

impl Rank {
    pub(super) fn join(
        &self,
        generation: Generation,
        listener: &TcpListener,
        interruptions: u64,
    ) -> Result<JoinReply, Error> {
        let held = self.replica.complete.then(|| HeldState {
            applied_step: self.replica.applied,
            digest: self.replica.digest(),
            entered_ready: self.replica.entered_ready,
        });
        let plan = NumericPlan::propose(
            &self.job,
            self.env.world_size as usize,
            self.env.threads.max(1) as usize,
        );
        let data_address = listener
            .local_addr()
            .map_err(|source| Error::Listen { address: self.env.address.clone(), source })?
            .to_string();
        let request = JoinRequest {
            job_id: self.env.job_id.clone(),
            generation: Some(generation),
            rank: self.env.rank,
            data_address,
            held,
            numeric_plan: serde_json::to_string(&plan).expect("a plan is plain data"),
        };
        Ok(self.client.join_unless_interrupted_since(request, interruptions)?)
    }

    pub(super) fn connect(
        &self,
        generation: Generation,
        listener: &TcpListener,
        reply: &JoinReply,
        abort: &AbortFlag,
    ) -> Result<Box<dyn Collective>, Error> {
        if reply.peers.len() == 1 {
            return Ok(Box::new(Solo::new()));
        }
        let options = Options {
            generation,
            rank: self.env.rank as usize,
            peers: reply.peers.clone(),
            token: reply.token.clone(),
            connect_timeout: CONNECT_TIMEOUT,
            // Progress is the control plane's to judge: it knows slow from dead.
            deadline: None,
            tls: self.tls()?,
        };
        Ok(Box::new(Tcp::connect(listener, &options, abort)?))
    }

    /// The certificate names the generation, so its file is read anew for each.
    fn tls(&self) -> Result<Option<Tls>, Error> {
        let Some(files) = &self.env.data_tls else { return Ok(None) };
        let tls =
            Tls::from_files(&self.env.job_id, &files.authority, &files.certificate, &files.key)?;
        Ok(Some(tls))
    }

    /// Keeps the plan that the job's first generation fixed, and says where that is impossible.
    pub(super) fn note_numeric_plan(&self, reply: &JoinReply, collective: &dyn Collective) {
        let Ok(fixed) = serde_json::from_str::<NumericPlan>(&reply.numeric_plan) else { return };
        tch::set_num_threads(fixed.threads.max(1) as i32);
        let now = NumericPlan::propose(&self.job, collective.world_size(), fixed.threads);
        let departures = now.departures(&fixed);
        if !departures.is_empty() {
            tracing::warn!(
                step = self.replica.applied,
                departures = departures.join("; "),
                "bit-exactness ends here: the numeric plan cannot be kept"
            );
        }
    }

    /// Everybody leaves with the state of the source: a survivor's, a checkpoint's, or step 0.
    pub(super) fn agree_on_state(
        &mut self,
        reply: &JoinReply,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let source = reply.source_rank as usize;
        let stored = reply.source() == StateSource::Stored;
        if stored && collective.rank() == source {
            self.load_stored(&reply.checkpoint_hint)?;
        }
        if stored || !reply.receivers.is_empty() {
            let began = Instant::now();
            self.replica.receive(source, stored, collective)?;
            tracing::info!(
                step = self.replica.applied,
                source,
                live = !stored,
                milliseconds = began.elapsed().as_millis() as u64,
                "state received"
            );
        }
        Ok(())
    }

    /// The newest checkpoint of this job, else of the one it resumes from, else step 0.
    fn load_stored(&mut self, hint: &str) -> Result<(), Error> {
        let own = checkpoint::job_url(&self.job.checkpoint.uri, &self.env.job_id);
        let resume = self.env.resume_from.as_deref();
        let places: Vec<&str> = std::iter::once(own.as_str()).chain(resume).collect();
        if let Some(chosen) = checkpoint::choose(&places)? {
            tracing::info!(url = %chosen.url(), "loading checkpoint");
            let chosen_is_own = chosen.url().starts_with(&own);
            let loaded = chosen.load()?;
            self.replica.load(&loaded)?;
            if !chosen_is_own {
                self.replica.resumed_samples = loaded.state.samples;
            }
            return Ok(());
        }
        if let Some(resume) = resume {
            let what = format!("{resume} holds no complete checkpoint to resume from");
            return Err(Error::Checkpoint { what });
        }
        if !hint.is_empty() {
            let what = format!(
                "{hint} was published, but no checkpoint of this job verifies any more; the log says \
                 what is damaged. Submit the job again to start anew"
            );
            return Err(Error::Checkpoint { what });
        }
        if !self.replica.pristine {
            self.replica = Replica::new(&self.job, self.device)?;
        }
        self.replica.complete = true;
        Ok(())
    }
}
