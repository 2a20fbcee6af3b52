//! Forming a ring: every rank of a generation joins, then all are told the same plan.
//!
//! Ranks join by their seats. Whoever has a seat is waited for; the ring that is then formed counts
//! its ranks anew, without the vacant seats.

use std::collections::BTreeMap;

use rand::RngCore as _;
use ringmaster_proto::v1::{self, Generation};

use super::Error;
use super::cluster::Cluster;
use super::handle::Reply;
use super::job::Job;
use super::ledger::Ledger;
use super::ring;
use crate::recovery::{self, Report, Source};
use crate::state::{Rollback, State};

/// Bytes of the secret a generation's ranks share.
const TOKEN_BYTES: usize = 32;

/// The ring of the current generation.
#[derive(Debug, Default)]
pub(super) struct Membership {
    /// Ranks that wait for the others, by seat.
    waiting: BTreeMap<u32, (v1::JoinRequest, Reply<v1::JoinReply>)>,
    /// What every rank was told once all had joined, by ring rank; empty before, and after a restart of the
    /// coordinator.
    told: Vec<v1::JoinReply>,
}

impl Membership {
    /// Forgets the ring; returns those that still waited.
    pub(super) fn clear(&mut self) -> Vec<Reply<v1::JoinReply>> {
        self.told.clear();
        self.take_waiting()
    }

    /// Returns those that still waited.
    pub(super) fn take_waiting(&mut self) -> Vec<Reply<v1::JoinReply>> {
        std::mem::take(&mut self.waiting).into_values().map(|(_, reply)| reply).collect()
    }

    /// Seats that have joined and wait.
    pub(super) fn joined_seats(&self) -> impl Iterator<Item = u32> + use<'_> {
        self.waiting.keys().copied()
    }

    /// Ranks that have joined and wait.
    pub(super) fn joined(&self) -> usize {
        self.waiting.len()
    }
}

impl Cluster {
    pub(super) fn join(&mut self, request: v1::JoinRequest, reply: Reply<v1::JoinReply>) {
        let given = request.generation.unwrap_or_default();
        if let Err(error) = self.admit(&request) {
            if matches!(error, Error::Stale { .. }) {
                self.repeat_regenerate(&request.job_id, request.rank, given);
            }
            return self.ledger.reply(reply, Err(error));
        }
        let seat = request.rank;
        let job = self.jobs.get_mut(&request.job_id).expect("admitted jobs exist");
        if let Some(node) = job.seat(seat) {
            let key = (request.job_id.clone(), seat);
            if let Some(process) =
                self.nodes.get_mut(node).and_then(|node| node.processes.get_mut(&key))
            {
                process.see(given, None);
            }
        }
        if let Some(held) = &request.held {
            job.progress(held.applied_step);
        }

        if job.record.formed {
            return self.ledger.rejoin(job, request, reply);
        }
        if let Some((_, replaced)) = job.membership.waiting.insert(seat, (request, reply)) {
            let job_id = job.record.job_id.clone();
            self.ledger.reply(replaced, Err(Error::Replaced { job_id, rank: seat }));
        }
        let (joined, taken) = (job.membership.joined(), job.taken());
        let enough = taken >= job.wants.min_ranks as usize && job.lost.is_empty();
        if joined == taken && enough {
            self.ledger.form(job);
        } else if enough {
            let reason = format!("{joined} of {taken} ranks have joined generation {given}");
            // For people only: not worth a write of its own.
            job.record.reason = reason;
            job.changed = true;
        }
    }

    /// Checks that the caller has a seat in the current generation of a live job.
    fn admit(&mut self, request: &v1::JoinRequest) -> Result<(), Error> {
        let given = request.generation.unwrap_or_default();
        let job = self.live(&request.job_id, given)?;
        check_rank(request.rank, job.record.ranks, &job.record.job_id)?;
        if job.seat(request.rank).is_none() {
            return Err(Error::NoSeat { job_id: request.job_id.clone(), seat: request.rank });
        }
        if job.is_stopping() && !job.record.formed {
            return Err(stopping(job));
        }
        Ok(())
    }

    /// Returns a job whose current generation is the given one.
    pub(super) fn live(&mut self, job_id: &str, given: Generation) -> Result<&mut Job, Error> {
        let job = self.job(job_id)?;
        if job.record.state.is_ended() {
            return Err(Error::NotLive {
                job_id: job_id.to_owned(),
                state: job.record.state.word(),
                reason: job.record.reason.clone(),
            });
        }
        match job.record.generation {
            Some(current) if current == given && job.record.state.is_placed() => Ok(job),
            Some(current) if current == given => Err(Error::NotLive {
                job_id: job_id.to_owned(),
                state: job.record.state.word(),
                reason: job.record.reason.clone(),
            }),
            current => Err(Error::Stale {
                job_id: job_id.to_owned(),
                given,
                current: current.unwrap_or_default(),
            }),
        }
    }

    /// A rank that calls for an old generation has not heard of the new one: its agent may have had
    /// the news before the rank was there to take it.
    fn repeat_regenerate(&mut self, job_id: &str, rank: u32, given: Generation) {
        let key = (job_id.to_owned(), rank);
        for node in self.nodes.values_mut() {
            if let Some(process) = node.processes.get_mut(&key)
                && process.generation <= given
            {
                process.told = None;
            }
        }
    }
}

impl Ledger {
    /// A rank of a ring that stands calls again: the answer was lost on the way.
    fn rejoin(&mut self, job: &mut Job, request: v1::JoinRequest, reply: Reply<v1::JoinReply>) {
        let seat = request.rank;
        let told = job.ring_rank(seat).and_then(|rank| job.membership.told.get(rank));
        if let Some(told) = told
            && told.peers[told.rank as usize] == request.data_address
        {
            let answer = told.clone();
            return self.reply(reply, Ok(answer));
        }
        if job.is_stopping() {
            // No checkpoint will come of a broken ring, and no other is formed.
            job.kill_at = Some(self.now.at);
            return self.reply(reply, Err(stopping(job)));
        }
        let given = job.generation();
        let why = if job.membership.told.is_empty() {
            format!("the plan of {given} was lost with the earlier coordinator")
        } else {
            format!("rank {seat} came back to {given} at another address")
        };
        self.regenerate(job, &why);
        let job_id = job.record.job_id.clone();
        self.reply(reply, Err(Error::Stale { job_id, given, current: job.generation() }));
    }

    /// Everybody has joined: decides where the state comes from and answers all.
    fn form(&mut self, job: &mut Job) {
        let mut waiting = std::mem::take(&mut job.membership.waiting);
        job.record.ring = ring::order(&job.record.seats);
        let in_ring_order = job.record.ring.iter().filter_map(|seat| waiting.remove(seat));
        let (requests, replies): (Vec<_>, Vec<_>) = in_ring_order.unzip();
        let reports: Vec<Report> = requests.iter().map(report).collect();
        let plan = recovery::decide(&reports);

        let numeric_plan =
            job.record.numeric_plan.get_or_insert_with(|| requests[0].numeric_plan.clone()).clone();
        let rollback = job.record.rollback.as_ref();
        let mut token = vec![0; TOKEN_BYTES];
        rand::rng().fill_bytes(&mut token);
        let common = v1::JoinReply {
            world_size: count(requests.len()),
            peers: requests.iter().map(|request| request.data_address.clone()).collect(),
            token,
            source_rank: plan.source_rank,
            source: match plan.source {
                Source::Live => v1::StateSource::Live,
                Source::Stored => v1::StateSource::Stored,
            }
            .into(),
            apply_held: false,
            receivers: plan.receivers.clone(),
            numeric_plan,
            checkpoint_hint: job.record.checkpoint_url.clone(),
            // Of this generation: what waited for an older one was dropped with it.
            communicator_id: requests[0].communicator_id.clone(),
            rank: 0,
            rolled_back_to: rollback.map(|rollback| rollback.url.clone()).unwrap_or_default(),
            gives_up: rollback.map(Rollback::up_to),
        };
        job.membership.told = (0..common.world_size)
            .map(|rank| v1::JoinReply {
                apply_held: plan.apply_held.contains(&rank),
                rank,
                ..common.clone()
            })
            .collect();
        for (reply, told) in replies.into_iter().zip(job.membership.told.clone()) {
            self.reply(reply, Ok(told));
        }
        self.set_running(job, &plan);
    }

    fn set_running(&mut self, job: &mut Job, plan: &recovery::Plan) {
        let first = job.record.started_at_ms == 0;
        if first {
            job.record.started_at_ms = self.now.unix_ms;
        }
        job.record.formed = true;
        if let Some(recovery) = &mut job.recovery {
            recovery.form(self.now.at);
        }
        job.record.state = State::Running;
        job.attach_until = None;
        let source = match plan.source {
            Source::Live => {
                format!("state from rank {}", job.record.ring[plan.source_rank as usize])
            }
            Source::Stored if first && job.record.resume_from.is_empty() => {
                "from the start".to_owned()
            }
            Source::Stored => match &job.record.rollback {
                Some(rollback) => format!("state from the checkpoint of step {}", rollback.step),
                None => "state from the newest checkpoint".to_owned(),
            },
        };
        job.record.reason = job.strength();
        let (generation, ranks) = (job.generation(), job.record.ring.len());
        let of = if job.is_whole() { String::new() } else { format!(" of {}", job.record.ranks) };
        let message = format!("generation {generation}: {ranks}{of} ranks, {source}");
        self.event(job, "running", message);
    }
}

fn report(request: &v1::JoinRequest) -> Report {
    match request.held {
        None => Report::Fresh,
        Some(v1::HeldState { applied_step, digest, entered_ready }) => {
            Report::Held { applied_step, digest, entered_ready }
        }
    }
}

/// Checks that a rank or seat exists.
pub(super) fn check_rank(rank: u32, ranks: u32, job_id: &str) -> Result<(), Error> {
    if rank < ranks {
        return Ok(());
    }
    Err(Error::Invalid {
        field: "rank",
        value: rank.to_string(),
        constraint: format!("job {job_id} has {ranks} ranks"),
    })
}

fn count(ranks: usize) -> u32 {
    u32::try_from(ranks).expect("world sizes fit u32")
}

fn stopping(job: &Job) -> Error {
    Error::NotLive {
        job_id: job.record.job_id.clone(),
        state: "stopping",
        reason: job.record.reason.clone(),
    }
}
