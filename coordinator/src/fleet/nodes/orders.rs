//! What agents are told: the difference between what should run and what does.

use std::time::Duration;

use ringmaster_proto::v1::coordinator_message::Message;
use ringmaster_proto::{Seat, v1};
use tokio::time::Instant;

use super::node::{Process, Session, Stop};
use super::table::Nodes;
use crate::fleet::{Batch, Job, Jobs, Loss};

impl Nodes {
    /// Stops every process no job wants, and those of jobs that are to end.
    pub(crate) fn stop_what_is_not_wanted(&mut self, jobs: &Jobs, batch: &mut Batch) {
        let (now, grace) = (batch.now.at, batch.config.grace);
        for (name, node) in &mut self.by_name {
            let Some(session) = &node.session else { continue };
            for ((job_id, rank), process) in &mut node.processes {
                let job = jobs.by_id.get(job_id);
                process.doomed |= !job.is_some_and(|job| job.sits(*rank, name));
                let stop = if process.doomed {
                    Some((Stop::Kill, "another process has its place".to_owned()))
                } else if let Some((_, why)) = &process.killed {
                    Some((Stop::Kill, why.clone()))
                } else {
                    stop_for(job, grace, now)
                };
                let Some((stop, reason)) = stop else { continue };
                // Once for each session and urgency.
                let told = process.stopped;
                if told.is_some_and(|(id, before)| id == session.id && before >= stop) {
                    continue;
                }
                process.stopped = Some((session.id, stop));
                if stop == Stop::Kill {
                    process.is_killed(now, &reason);
                }
                session.stop(batch, job_id, *rank, stop, reason);
            }
        }
    }

    /// Starts ranks that have a seat and no process, and tells survivors of their new generation.
    pub(crate) fn start_and_regenerate(&mut self, jobs: &mut Jobs, batch: &mut Batch) {
        for (job_id, job) in &mut jobs.by_id {
            let live = job.record.state.is_placed() && !job.is_stopping() && !job.is_finished();
            if !live {
                continue;
            }
            let may_start = job.record.formed || self.reach_one_another(job_id, job, batch);
            let mut gone = Vec::new();
            for rank in job.seats().filter(|rank| !job.is_done(*rank)) {
                let Some(node) = job.seat(rank).and_then(|name| self.by_name.get_mut(name)) else {
                    continue;
                };
                let Some(session) = &node.session else { continue };
                let generation = job.generation();
                let key = (job_id.clone(), rank);
                if let Some(process) = node.processes.get_mut(&key) {
                    let told = Some((session.id, generation));
                    if !process.doomed && process.generation < generation && process.told != told {
                        process.told = told;
                        let message = v1::Regenerate {
                            job_id: job_id.clone(),
                            rank: rank.0,
                            generation: Some(generation),
                        };
                        batch.send(&session.outbound, Message::Regenerate(message));
                    }
                } else if job.attach_until.is_none() && job.ring_stands_with(rank) {
                    // It has been there, since it joined: to start another would make two of it.
                    gone.push(rank);
                } else if job.attach_until.is_none() && may_start {
                    let slot = job.record.slots[rank.index()];
                    node.processes.insert(key, Process::requested(generation, Some(slot)));
                    let device = node.device(slot);
                    let start = v1::StartRank { device, ..start(job, rank) };
                    batch.send(&session.outbound, Message::StartRank(start));
                }
            }
            for rank in gone {
                job.lose(batch, rank, Loss::new("its agent came back without it", true));
            }
        }
    }
}

impl Session {
    /// Asks an agent to stop a rank.
    pub(crate) fn stop(
        &self,
        batch: &mut Batch,
        job_id: &str,
        seat: Seat,
        stop: Stop,
        reason: String,
    ) {
        let message = v1::StopRank {
            job_id: job_id.to_owned(),
            rank: seat.0,
            graceful: stop == Stop::Graceful,
            // How they fare is watched here: their agent kills them when it is told to.
            grace_ms: 0,
            reason,
        };
        batch.send(&self.outbound, Message::StopRank(message));
    }
}

/// Says how a process is to be stopped and why; nothing for one that is wanted.
fn stop_for(job: Option<&Job>, grace: Duration, now: Instant) -> Option<(Stop, String)> {
    let Some(job) = job else { return Some((Stop::Kill, "the job is not known".to_owned())) };
    let record = &job.record;
    if !record.state.is_placed() {
        return Some((
            Stop::Kill,
            format!("the job is {}: {}", record.state.word(), record.reason),
        ));
    }
    let overdue = job.is_overdue(grace, now);
    if let Some(reason) = job.stop_reason() {
        // Ranks that do not form a ring have no common step at which to checkpoint.
        let graceful = record.formed && !overdue;
        let stop = if graceful { Stop::Graceful } else { Stop::Kill };
        return Some((stop, reason.to_owned()));
    }
    let lingers = job.is_finished() && overdue;
    lingers.then(|| (Stop::Kill, "the run is finished, but the rank does not end".to_owned()))
}

/// What an agent needs to start a rank.
fn start(job: &Job, seat: Seat) -> v1::StartRank {
    let record = &job.record;
    let mine = job.seat(seat);
    let neighbours = job.seats().filter(|other| job.seat(*other) == mine).count();
    v1::StartRank {
        job_id: record.job_id.clone(),
        generation: record.generation,
        rank: seat.0,
        world_size: record.ranks,
        local_rank: record.slots[seat.index()],
        local_world_size: u32::try_from(neighbours).expect("world sizes fit u32"),
        manifest: record.manifest.clone(),
        resume_from: record.resume_from.clone(),
        threads: record.threads,
        device: String::new(),
    }
}
