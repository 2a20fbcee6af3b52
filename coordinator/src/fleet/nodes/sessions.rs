//! What agents say: registration, heartbeats, the end of their stream.

use std::collections::BTreeMap;

use ringmaster_proto::v1::coordinator_message::Message;
use ringmaster_proto::{Seat, v1};
use tokio::sync::mpsc;

use super::lease::Lease;
use super::node::{Node, Presence, Process, RankKey, Session};
use super::table::Nodes;
use crate::fleet::{Batch, Error, Jobs};
use crate::state::{AgentProcess, Change};

impl Nodes {
    /// Opens an agent's session and takes in what it runs; returns the session's number.
    pub(crate) fn open(
        &mut self,
        jobs: &mut Jobs,
        batch: &mut Batch,
        register: v1::Register,
        outbound: mpsc::Sender<v1::CoordinatorMessage>,
    ) -> Result<u64, Error> {
        check_register(&register, batch.config.build_id.as_deref())?;
        let agent = process_of(&register);
        self.check_name_is_free(jobs, batch, &register)?;
        if let Some(seen) = register.highest_generation {
            batch.rise_above(seen);
        }
        self.last_session += 1;
        let id = self.last_session;

        // What is known of the node stays known; an older session of it is over.
        let mut known = self.by_name.remove(&register.node);
        if let Some(old) = known.as_ref().and_then(|node| node.session.as_ref()) {
            self.sessions.remove(&old.id);
        }
        let last = known.as_ref().map(|node| &node.agent).or(self.awaited.get(&register.node));
        let same_agent = last == Some(&agent);
        self.awaited.remove(&register.node);
        if !same_agent {
            let (node, agent) = (register.node.clone(), Some(agent.clone()));
            batch.change(Change::Agent { node, agent });
            // Whatever kept jobs away from the node may have been mended.
            jobs.by_id.values_mut().for_each(|job| job.evidence.accept(&register.node));
        }
        let message = v1::Registered {
            heartbeat_interval_ms: millis(batch.config.heartbeat),
            lease_ms: millis(batch.config.lease),
        };
        batch.send(&outbound, Message::Registered(message));
        let mut node = Node {
            slots: register.slots,
            cpus: register.cpus,
            accelerator: register.accelerator.clone(),
            address: register.address.clone(),
            agent,
            dial_address: register.dial_address.clone(),
            session: Some(Session { id, outbound }),
            lease: Lease::new(batch.config.lease, batch.now.at),
            last_heartbeat_ms: batch.now.unix_ms,
            leaving: false,
            worker: register.worker.clone(),
            slots_out: BTreeMap::new(),
            undead: known.as_mut().map(|node| std::mem::take(&mut node.undead)).unwrap_or_default(),
            processes: known.map(|node| node.processes).unwrap_or_default(),
        };
        node.take_slots_out(&register.node, register.slots_out.clone().unwrap_or_default());
        node.forget_undead(&register);
        tracing::info!(node = %register.node, slots = node.slots, session = id, "agent registered");
        warn_if_unusable(&register.node, &node);
        node.take_missing(jobs, batch, &register, same_agent);
        node.take_running(jobs, batch, &register);
        node.kill_undead_again(batch);
        self.sessions.insert(id, register.node.clone());
        self.by_name.insert(register.node, node);
        Ok(id)
    }

    /// Takes in a heartbeat; returns whether it calls for a decision before the next tick.
    pub(crate) fn heartbeat(
        &mut self,
        jobs: &mut Jobs,
        batch: &mut Batch,
        session: u64,
        heartbeat: v1::Heartbeat,
    ) -> bool {
        let now = batch.now;
        let Some((name, node)) = self.of_session(session) else { return false };
        node.lease.renew(now.at);
        node.last_heartbeat_ms = now.unix_ms;
        if heartbeat.sequence != 0
            && let Some(session) = &node.session
        {
            let ack = v1::HeartbeatAck { sequence: heartbeat.sequence };
            batch.send(&session.outbound, Message::HeartbeatAck(ack));
        }
        let mut matters = false;
        for status in heartbeat.ranks {
            let seat = Seat(status.rank);
            let key = (status.job_id.clone(), seat);
            let Some(process) = node.processes.get_mut(&key) else { continue };
            // Of an older process in its place, which is being ended.
            if status.generation.unwrap_or_default() < process.started {
                continue;
            }
            process.see(status.generation.unwrap_or_default(), Some(status.pid));
            let started = process.started;
            let Some(job) = jobs.by_id.get_mut(&status.job_id) else { continue };
            if !job.sits(seat, name) || job.record.state.is_ended() {
                continue;
            }
            // A recovery is followed closely, and a ring that broke is acted on at once.
            matters |= job.recovery.is_some() || status.phase() == v1::Phase::Join;
            job.observe(status, started, now.at);
        }
        matters
    }

    /// An agent was told to end: its ranks checkpoint and stop with their jobs, and get no seat there
    /// any more.
    pub(crate) fn leave(&mut self, session: u64, leaving: &v1::Leaving) {
        let Some((name, node)) = self.of_session(session) else { return };
        tracing::info!(node = %name, grace_ms = leaving.grace_ms, reason = %leaving.reason, "an agent leaves");
        node.leaving = true;
    }

    /// An agent's worker is another one, or fares otherwise. Ranks that run there go on.
    pub(crate) fn take_worker(&mut self, session: u64, worker: v1::Worker) {
        let Some((name, node)) = self.of_session(session) else { return };
        tracing::info!(node = %name, version = %worker.version, "an agent's worker has changed");
        node.worker = Some(worker);
        warn_if_unusable(name, node);
    }

    /// An agent's stream has ended; its lease runs on, but not for long.
    pub(crate) fn close(&mut self, batch: &Batch, session: u64) {
        let Some(name) = self.sessions.remove(&session) else { return };
        let Some(node) = self.by_name.get_mut(&name) else { return };
        node.session = None;
        node.lease.shorten(batch.config.session_grace, batch.now.at);
        tracing::warn!(node = %name, session, "an agent's session ended; it may come back");
    }
}

impl Nodes {
    /// Refuses a second agent of a name while the first is alive, or may come back after a restart: they would
    /// take the node from one another for ever, and each would lose the other's ranks.
    fn check_name_is_free(
        &self,
        jobs: &Jobs,
        batch: &Batch,
        register: &v1::Register,
    ) -> Result<(), Error> {
        let is_other = |agent: &AgentProcess| {
            !register.instance.is_empty()
                && !agent.instance.is_empty()
                && agent.instance != register.instance
        };
        let node = register.node.clone();
        if let Some(known) = self.by_name.get(&node) {
            if is_other(&known.agent) && known.answers(batch.now.at) {
                let (address, pid) = (known.address.clone(), known.agent.pid);
                return Err(Error::NameTaken { node, address, pid });
            }
        } else if let Some(agent) = self.awaited.get(&node)
            && is_other(agent)
            && jobs.by_id.values().any(|job| job.awaits(&node))
        {
            return Err(Error::NameAwaited { node, pid: agent.pid });
        }
        Ok(())
    }
}

impl Node {
    /// Forgets processes that counted as undead and of which the agent, come back, says nothing: they are
    /// gone, or their slots are among those that it says take no rank.
    fn forget_undead(&mut self, register: &v1::Register) {
        let runs = |key: &RankKey| {
            let mut running = register.running.iter();
            running.any(|running| running.job_id == key.0 && running.rank == key.1.0)
        };
        self.undead.retain(|undead| runs(&undead.key));
    }

    /// Takes in what an agent says it runs. Of what it does not run nothing is left here.
    fn take_running(&mut self, jobs: &mut Jobs, batch: &mut Batch, register: &v1::Register) {
        for running in &register.running {
            let generation = running.generation.unwrap_or_default();
            let key = (running.job_id.clone(), Seat(running.rank));
            if self.undead.iter().any(|undead| undead.key == key && generation <= undead.until) {
                continue;
            }
            let job = jobs.by_id.get_mut(&running.job_id);
            let seat = Seat(running.rank);
            let index = seat.index();
            let slot = job.as_ref().and_then(|job| job.record.slots.get(index).copied());
            let started = running.started.unwrap_or(generation);
            let process = self
                .processes
                .entry(key)
                .or_insert_with(|| Process::reported(started, running.pid, slot));
            process.see(generation, Some(running.pid));
            // It may have called before its agent came back, which knows since when it runs.
            process.started = process.started.min(started);
            let is_doomed = process.doomed;
            // A rank that counted as lost has a place after all, if the ring is not formed yet and
            // nobody else has its slot.
            let Some(job) = job else { continue };
            let waits = job.record.seats.get(index).is_some_and(Option::is_none);
            let forming = job.record.state.is_placed() && !job.record.formed;
            let was = job.preferred.get(index).and_then(Option::as_ref);
            let here = was.is_none_or(|was| *was == register.node)
                && !is_doomed
                && !job.evidence.avoids(&register.node, batch.now.at);
            if forming && waits && here && generation <= job.generation() {
                job.record.seats[index] = Some(register.node.clone());
                let message = format!("rank {} is back on {}", running.rank, register.node);
                job.record.reason.clone_from(&message);
                job.event(batch, "rank_back", message);
            }
        }
    }

    /// Takes in what an agent was believed to run and does not: news of its end may be on the way, if
    /// the agent is the same process as before.
    fn take_missing(
        &mut self,
        jobs: &mut Jobs,
        batch: &mut Batch,
        register: &v1::Register,
        same_agent: bool,
    ) {
        let now = batch.now.at;
        let runs = |key: &RankKey| {
            let mut running = register.running.iter();
            running.find(|running| running.job_id == key.0 && running.rank == key.1.0)
        };
        self.processes.retain(|key, process| {
            // What was told of no generation since this one was started is another, of an agent that was
            // away while another had its name.
            let told = runs(key).map(|running| running.generation.unwrap_or_default());
            let is_older = told.is_some_and(|generation| generation < process.started);
            if told.is_some() && !is_older {
                return true;
            }
            let seen = match process.presence {
                Presence::Requested => false,
                Presence::Seen => true,
                Presence::Missing { seen, .. } => seen,
            };
            if same_agent && !is_older {
                process.presence = Presence::Missing { since: now, seen };
                return true;
            }
            // Of another agent: no news of this rank's end will come any more.
            if let Some(job) = jobs.by_id.get_mut(&key.0)
                && seen
                && !process.doomed
                && job.sits(key.1, &register.node)
            {
                let how = "its agent was restarted";
                job.lose_gone(batch, key.1, process, "agent restarted", how);
            }
            false
        });
    }
}

/// Which process an agent is.
fn process_of(register: &v1::Register) -> AgentProcess {
    AgentProcess { instance: register.instance.clone(), pid: register.pid }
}

fn warn_if_unusable(name: &str, node: &Node) {
    if let Some(why) = node.unusable() {
        tracing::warn!(node = %name, %why, "a node's worker cannot start; it gets no ranks");
    }
}

fn check_register(register: &v1::Register, build_id: Option<&str>) -> Result<(), Error> {
    if register.node.is_empty() || register.slots == 0 {
        return Err(Error::Invalid {
            field: "register",
            value: format!("node {:?} with {} slots", register.node, register.slots),
            constraint: "an agent needs a name and at least one slot".to_owned(),
        });
    }
    match build_id {
        Some(wanted) if wanted != register.build_id => Err(Error::WrongBuild {
            node: register.node.clone(),
            found: register.build_id.clone(),
            wanted: wanted.to_owned(),
        }),
        _ => Ok(()),
    }
}

fn millis(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
