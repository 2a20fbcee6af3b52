//! Forming a ring: every rank of a generation joins, then all are told the same plan.
//!
//! Ranks join by their seats. Whoever has a seat is waited for; the ring that is then formed counts
//! its ranks anew, without the vacant seats.

use rand::RngCore as _;
use ringmaster_proto::{RingRank, Seat, v1};

use super::job::Job;
use crate::fleet::rings::{Member, order};
use crate::fleet::{Batch, Error, Reply};
use crate::recovery::{self, Floor, Held, Plan, Report, Source};
use crate::state::{Rollback, State};

/// Bytes of the secret a generation's ranks share.
const TOKEN_BYTES: usize = 32;

impl Job {
    /// Checks that a caller of the current generation has a seat in it.
    pub(crate) fn check_admitted(&self, seat: Seat) -> Result<(), Error> {
        check_rank(seat.0, self.record.ranks, &self.record.job_id)?;
        if self.seat(seat).is_none() {
            return Err(Error::NoSeat { job_id: self.record.job_id.clone(), seat });
        }
        if self.is_stopping() && !self.record.formed {
            return Err(self.not_live("stopping"));
        }
        Ok(())
    }

    /// Takes in an admitted rank: it waits for the others, unless it is the last or the ring stands.
    pub(crate) fn join(
        &mut self,
        batch: &mut Batch,
        request: v1::JoinRequest,
        reply: Reply<v1::JoinReply>,
    ) {
        if let Some(left) = &request.left {
            self.breaks.hear(Seat(request.rank), left);
        }
        if self.record.formed {
            return self.rejoin(batch, request, reply);
        }
        let seat = Seat(request.rank);
        if let Some(replaced) = self.membership.wait(request, reply) {
            let job_id = self.record.job_id.clone();
            batch.reply(replaced, Err(Error::Replaced { job_id, caller: format!("rank {seat}") }));
        }
        self.form_if_complete(batch);
    }

    /// Forms the ring if the only seats that had not joined were given up meanwhile.
    pub(crate) fn form_if_nobody_is_missing(&mut self, batch: &mut Batch) {
        let forms = self.record.state.is_placed() && !self.record.formed && !self.is_stopping();
        if forms && self.fault.is_none() && self.membership.joined() >= self.taken() {
            self.form_if_complete(batch);
        }
    }

    /// Forms the ring if every seat that is taken has joined, and nothing stands against it.
    pub(crate) fn form_if_complete(&mut self, batch: &mut Batch) {
        let (joined, taken) = (self.membership.joined(), self.taken());
        // While a loss has not been acted on nothing is formed: the lost rank's seat still counts as taken,
        // and settling opens another generation.
        let enough = taken >= self.spec.min_ranks as usize && self.lost.is_empty();
        if joined == 0 || !enough {
            return;
        }
        if joined < taken {
            // For people only: not worth a write of its own.
            let generation = self.generation();
            self.record.reason =
                format!("{joined} of {taken} ranks have joined generation {generation}");
            self.changed = true;
            return;
        }
        // All have said how their last ring ended. If that names somebody, settling may put another node in
        // its place before it ends in the same way.
        if let Some(fault) = self.breaks.judge() {
            self.event(batch, "ring_lost", fault.what().to_owned());
            self.fault = Some(fault);
        }
        if self.fault.is_none() {
            self.form(batch);
        }
    }

    /// A rank of a ring that stands calls again: the answer was lost on the way.
    fn rejoin(&mut self, batch: &mut Batch, request: v1::JoinRequest, reply: Reply<v1::JoinReply>) {
        // A rank that is where it was is told the same again.
        let seat = Seat(request.rank);
        let told = self.ring_rank(seat).and_then(|rank| self.membership.told().get(rank.index()));
        let has_left =
            request.left.as_ref().map(|left| left.generation) == Some(self.record.generation);
        if let Some(told) = told
            && !has_left
            && told.peers[RingRank(told.rank).index()] == request.data_address
        {
            return batch.reply(reply, Ok(told.clone()));
        }
        // Otherwise the ring is broken. While the job stops, no checkpoint will come of it, and no other
        // ring is formed; a finished one has nothing left to do.
        if self.is_stopping() || self.is_finished() {
            self.kill_at = Some(batch.now.at);
            let state = if self.is_finished() { "finished" } else { "stopping" };
            return batch.reply(reply, Err(self.not_live(state)));
        }
        let given = self.generation();
        // Only of a ring that ended by itself its ranks know more than the coordinator.
        let breaks = std::mem::take(&mut self.breaks);
        match &request.left {
            Some(left) => {
                let why = format!("rank {seat} left the ring of {given}: {}", left.how);
                self.start_over(batch, &why);
            }
            None if self.membership.told().is_empty() => {
                let why = format!("the plan of {given} was lost with the earlier coordinator");
                self.regenerate(batch, &why);
            }
            None => {
                let why = format!("rank {seat} came back to {given} at another address");
                self.start_over(batch, &why);
            }
        }
        self.breaks = breaks;
        if self.record.state.is_ended() {
            return batch.reply(reply, Err(self.not_live(self.record.state.word())));
        }
        let job_id = self.record.job_id.clone();
        batch.reply(reply, Err(Error::Stale { job_id, given, current: self.generation() }));
    }

    /// Everybody has joined: decides where the state comes from and answers all.
    fn form(&mut self, batch: &mut Batch) {
        // The seats that are taken become the ring, counted from 0 in ring order.
        self.record.ring = order(&self.record.seats);
        let (requests, replies) = self.membership.take_in_order(&self.record.ring);

        // What they hold decides from whose state all go on.
        let reports: Vec<Report> = requests.iter().map(report).collect();
        let floor =
            Floor { checkpoint_step: self.record.checkpoint_step, gives_up: self.record.given_up };
        let plan = recovery::decide(&reports, &floor);
        if let (Source::Live, Report::Held(held)) = (plan.source, reports[plan.source_rank.index()])
        {
            self.learn(held.applied_step);
        }
        self.breaks.formed(self.generation(), self.roster(&requests));

        // All are told the same, but for their own place and whether they apply held gradients. It is kept
        // for a rank that the answer does not reach.
        let common = self.common_reply(&requests, &plan);
        let told: Vec<v1::JoinReply> = (0..common.world_size)
            .map(|rank| v1::JoinReply {
                apply_held: plan.apply_held.contains(&RingRank(rank)),
                rank,
                ..common.clone()
            })
            .collect();
        self.membership.tell(told.clone());
        for (reply, told) in replies.into_iter().zip(told) {
            batch.reply(reply, Ok(told));
        }
        self.set_running(batch, &plan);
    }

    /// Who is in the new ring, by rank.
    fn roster(&self, requests: &[v1::JoinRequest]) -> Vec<Member> {
        let members = self.record.ring.iter().zip(requests);
        let member = |(seat, request): (&Seat, &v1::JoinRequest)| Member {
            seat: *seat,
            node: self.seat(*seat).unwrap_or_default().to_owned(),
            address: request.data_address.clone(),
        };
        members.map(member).collect()
    }

    /// What every rank of the new ring is told. The first generation's numeric plan is kept by all that
    /// follow.
    fn common_reply(&mut self, requests: &[v1::JoinRequest], plan: &Plan) -> v1::JoinReply {
        let first_plan = || requests[0].numeric_plan.clone();
        let numeric_plan = self.record.numeric_plan.get_or_insert_with(first_plan).clone();
        let rollback = self.record.rollback.as_ref();
        let mut token = vec![0; TOKEN_BYTES];
        rand::rng().fill_bytes(&mut token);
        let source = match plan.source {
            Source::Live => v1::StateSource::Live,
            Source::Stored => v1::StateSource::Stored,
        };
        v1::JoinReply {
            world_size: u32::try_from(requests.len()).expect("world sizes fit u32"),
            peers: requests.iter().map(|request| request.data_address.clone()).collect(),
            token,
            source_rank: plan.source_rank.0,
            source: source.into(),
            apply_held: false,
            receivers: plan.receivers.iter().map(|rank| rank.0).collect(),
            numeric_plan,
            checkpoint_hint: self.record.checkpoint_url.clone(),
            // Of this generation: what waited for an older one was dropped with it.
            communicator_id: requests[0].communicator_id.clone(),
            rank: 0,
            rolled_back_to: rollback.map(|rollback| rollback.url.clone()).unwrap_or_default(),
            gives_up: rollback.map(Rollback::up_to),
        }
    }

    fn set_running(&mut self, batch: &mut Batch, plan: &Plan) {
        let is_first = self.record.started_at_ms == 0;
        if is_first {
            self.record.started_at_ms = batch.now.unix_ms;
        }
        self.record.formed = true;
        if let Some(recovery) = &mut self.recovery {
            recovery.form(batch.now.at);
        }
        self.record.state = State::Running;
        self.record.reason = self.strength();

        let source = match (plan.source, &self.record.rollback) {
            (Source::Live, _) => {
                format!("state from rank {}", self.record.ring[plan.source_rank.index()])
            }
            (Source::Stored, _) if is_first && self.record.resume_from.is_empty() => {
                "from the start".to_owned()
            }
            (Source::Stored, Some(to)) => format!("state from the checkpoint of step {}", to.step),
            (Source::Stored, None) => "state from the newest checkpoint".to_owned(),
        };
        let (generation, ranks) = (self.generation(), self.record.ring.len());
        let of = self.of_all();
        let message = format!("generation {generation}: {ranks}{of} ranks, {source}");
        self.event(batch, "running", message);
    }
}

/// What a rank says that it holds.
fn report(request: &v1::JoinRequest) -> Report {
    match request.held {
        None => Report::Fresh,
        Some(v1::HeldState { applied_step, digest, entered_ready, agreed }) => {
            let agreed = agreed.unwrap_or_default();
            Report::Held(Held { applied_step, digest, entered_ready, agreed })
        }
    }
}

/// Checks a number that came over the wire: that of a seat, or of a rank of the ring.
pub(crate) fn check_rank(rank: u32, ranks: u32, job_id: &str) -> Result<(), Error> {
    if rank < ranks {
        return Ok(());
    }
    Err(Error::Invalid {
        field: "rank",
        value: rank.to_string(),
        constraint: format!("job {job_id} has {ranks} ranks"),
    })
}
