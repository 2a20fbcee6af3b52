//! Desired, observed, difference: run after every batch but those of mere heartbeats, and at every
//! tick; harmless to repeat.
//!
//! Phases, in order: (1) what has silently gone becomes a loss; (2) every job that lost ranks
//! recovers or fails, and every job whose ranks have all ended ends; (3) seats are given to ranks,
//! in `placement`; (4) agents are told what differs from what they run.

use std::collections::BTreeMap;

use ringmaster_proto::v1;
use ringmaster_proto::v1::coordinator_message::Message;

use super::cluster::Cluster;
use super::job::Job;
use super::node::{Presence, Process, RankKey, Stop};
use crate::state::State;

impl Cluster {
    /// Brings everything as far as it can come without further news.
    pub(super) fn settle(&mut self) {
        self.unsettled = false;
        self.expire_leases();
        self.expire_missing();
        self.reattach();
        self.judge_standstills();
        self.recover_jobs();
        self.end_jobs();
        self.place();
        self.stop_what_is_not_wanted();
        self.start_and_regenerate();
    }

    // ---- 1. What has silently gone

    /// Gives up nodes that were not heard of for a lease, and sessions that do not take messages.
    fn expire_leases(&mut self) {
        let now = self.ledger.now.at;
        for (name, node) in &mut self.nodes {
            let stuck = node.session.as_ref().is_some_and(|session| {
                session.outbound.is_closed() || session.outbound.capacity() == 0
            });
            let expired = node.lease.is_expired(now);
            let was_open = node.session.is_some();
            if (stuck || expired)
                && let Some(session) = node.session.take()
            {
                tracing::warn!(node = %name, expired, "an agent's session is given up");
                self.sessions.remove(&session.id);
            }
            if !expired {
                continue;
            }
            let how = if was_open {
                let lease = self.config.lease.as_secs_f64();
                format!("its node was not heard of for {lease:.1} s")
            } else {
                "its agent's connection closed and did not come back".to_owned()
            };
            for ((job_id, rank), process) in std::mem::take(&mut node.processes) {
                let Some(job) = self.jobs.get_mut(&job_id) else { continue };
                if !process.doomed && job.sits(rank, name) && !job.is_done(rank) {
                    let counts = process.generation == job.generation();
                    self.ledger.lose_blameless(job, rank, how.clone(), counts);
                }
            }
        }
    }

    /// Gives up processes that an agent came back without, once their exits had time to arrive. One
    /// that was never seen was probably never started, and simply is again.
    fn expire_missing(&mut self) {
        let now = self.ledger.now.at;
        let lease = self.config.lease;
        for (name, node) in &mut self.nodes {
            let overdue: Vec<(RankKey, bool)> = node
                .processes
                .iter()
                .filter_map(|(key, process)| match process.presence {
                    Presence::Missing { since, seen } if now >= since + lease => {
                        Some((key.clone(), seen))
                    }
                    _ => None,
                })
                .collect();
            for (key, seen) in overdue {
                let process = node.processes.remove(&key).expect("the key was just read");
                let Some(job) = self.jobs.get_mut(&key.0) else { continue };
                if seen && !process.doomed && job.sits(key.1, name) && !job.is_done(key.1) {
                    let counts = process.generation == job.generation();
                    let how = "its agent came back without it".to_owned();
                    self.ledger.lose_blameless(job, key.1, how, counts);
                }
            }
        }
    }

    /// After a restart of the coordinator: a job goes on once all its ranks are back, and those that
    /// are not back in time are lost.
    fn reattach(&mut self) {
        let now = self.ledger.now.at;
        for (job_id, job) in &mut self.jobs {
            let Some(until) = job.attach_until else { continue };
            let absent: Vec<u32> = job
                .seats()
                .filter(|rank| !job.is_done(*rank) && !job.lost.contains_key(rank))
                .filter(|rank| {
                    let key = (job_id.clone(), *rank);
                    // One without a seat was lost before the restart, or since.
                    let Some(seat) = job.seat(*rank) else { return false };
                    let node = self.nodes.get(seat);
                    !node.is_some_and(|node| node.processes.contains_key(&key))
                })
                .collect();
            if absent.is_empty() {
                job.attach_until = None;
                if job.record.formed && job.lost.is_empty() && !job.is_stopping() {
                    job.record.state = State::Running;
                    job.record.reason = job.strength();
                    let message = format!("all ranks came back in {}", job.generation());
                    self.ledger.event(job, "reattached", message);
                }
            } else if now >= until {
                job.attach_until = None;
                for rank in absent {
                    let how = "it did not come back after the coordinator's restart".to_owned();
                    self.ledger.lose_blameless(job, rank, how, true);
                }
            }
        }
    }

    // ---- 2. Jobs that lost ranks, and jobs whose ranks have all ended

    fn recover_jobs(&mut self) {
        let hurt = self.jobs.iter().filter(|(_, job)| !job.lost.is_empty());
        let hurt: Vec<String> = hurt.map(|(job_id, _)| job_id.clone()).collect();
        for job_id in hurt {
            self.blame_node(&job_id);
            let job = self.jobs.get_mut(&job_id).expect("the job was just found");
            self.ledger.recover(job);
        }
    }

    fn end_jobs(&mut self) {
        let mut alive: BTreeMap<&str, usize> = BTreeMap::new();
        for (job_id, _) in self.nodes.values().flat_map(|node| node.processes.keys()) {
            *alive.entry(job_id).or_default() += 1;
        }
        for (job_id, job) in &mut self.jobs {
            if !job.record.state.is_placed() || job.attach_until.is_some() {
                continue;
            }
            let alive = alive.get(job_id.as_str()).copied().unwrap_or(0);
            let members = job.members();
            let all_done = !members.is_empty() && members.iter().all(|seat| job.is_done(*seat));
            // Before all else: the summary was taken, and a cancellation came too late.
            if job.is_finished() && (all_done || (job.is_stopping() && alive == 0)) {
                self.ledger.end(job, State::Succeeded, "the run reached its end");
            } else if let Some(reason) = job.record.cancel_reason.clone().filter(|_| alive == 0) {
                self.ledger.end(job, State::Cancelled, &reason);
            } else if job.record.halt.is_some() && alive == 0 {
                self.ledger.halted(job);
            } else if all_done && !job.is_stopping() {
                self.ledger.stopped_by_others(job);
            }
        }
    }

    // ---- 4. Telling the agents

    /// Stops every process no job wants, and those of jobs that are to end.
    fn stop_what_is_not_wanted(&mut self) {
        let now = self.ledger.now.at;
        let grace_ms = u32::try_from(self.config.grace.as_millis()).unwrap_or(u32::MAX);
        for (name, node) in &mut self.nodes {
            let Some(session) = &node.session else { continue };
            for ((job_id, rank), process) in &mut node.processes {
                let job = self.jobs.get(job_id);
                process.doomed |= !job.is_some_and(|job| job.sits(*rank, name));
                let stop = if process.doomed {
                    Some((Stop::Kill, "another process has its place".to_owned()))
                } else {
                    stop_for(job, now)
                };
                let Some((stop, reason)) = stop else { continue };
                let told = process.stopped;
                if told.is_some_and(|(id, before)| id == session.id && before >= stop) {
                    continue;
                }
                process.stopped = Some((session.id, stop));
                let message = v1::StopRank {
                    job_id: job_id.clone(),
                    rank: *rank,
                    graceful: stop == Stop::Graceful,
                    grace_ms: if stop == Stop::Graceful { grace_ms } else { 0 },
                    reason,
                };
                self.ledger.send(&session.outbound, Message::StopRank(message));
            }
        }
    }

    /// Starts ranks that have a seat and no process, and tells survivors of their new generation.
    fn start_and_regenerate(&mut self) {
        for (job_id, job) in &mut self.jobs {
            let live = job.record.state.is_placed() && !job.is_stopping() && !job.is_finished();
            if !live {
                continue;
            }
            for rank in job.seats() {
                if job.is_done(rank) {
                    continue;
                }
                let Some(node) = job.seat(rank).and_then(|name| self.nodes.get_mut(name)) else {
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
                            rank,
                            generation: Some(generation),
                        };
                        self.ledger.send(&session.outbound, Message::Regenerate(message));
                    }
                } else if job.attach_until.is_none() {
                    let slot = job.record.slots[rank as usize];
                    node.processes.insert(key, Process::requested(generation, Some(slot)));
                    self.ledger.send(&session.outbound, Message::StartRank(start(job, rank)));
                }
            }
        }
    }
}

/// Says how a process is to be stopped and why; nothing for one that is wanted.
fn stop_for(job: Option<&Job>, now: tokio::time::Instant) -> Option<(Stop, String)> {
    let Some(job) = job else { return Some((Stop::Kill, "the job is not known".to_owned())) };
    let record = &job.record;
    if !record.state.is_placed() {
        return Some((
            Stop::Kill,
            format!("the job is {}: {}", record.state.word(), record.reason),
        ));
    }
    let overdue = job.kill_at.is_some_and(|at| now >= at);
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
fn start(job: &Job, rank: u32) -> v1::StartRank {
    let record = &job.record;
    let mine = job.seat(rank);
    let neighbours = job.seats().filter(|other| job.seat(*other) == mine).count();
    v1::StartRank {
        job_id: record.job_id.clone(),
        generation: record.generation,
        rank,
        world_size: record.ranks,
        local_rank: record.slots[rank as usize],
        local_world_size: u32::try_from(neighbours).expect("world sizes fit u32"),
        manifest: record.manifest.clone(),
        resume_from: record.resume_from.clone(),
        threads: record.threads,
    }
}
