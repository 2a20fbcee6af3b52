//! What agents say: registration, heartbeats, exits, the end of their stream.

use ringmaster_proto::v1;
use tokio::sync::mpsc;

use super::cluster::Cluster;
use super::node::{Faults, Node, Presence, Process, Session};
use super::{Error, Lease};

impl Cluster {
    pub(super) fn open(
        &mut self,
        register: v1::Register,
        outbound: mpsc::Sender<v1::CoordinatorMessage>,
    ) -> Result<u64, Error> {
        self.check_register(&register)?;
        if let Some(seen) = register.highest_generation {
            self.ledger.rise_above(seen);
        }
        self.last_session += 1;
        let id = self.last_session;
        let now = self.ledger.now;

        let known = self.nodes.remove(&register.node);
        if let Some(old) = known.as_ref().and_then(|node| node.session.as_ref()) {
            self.sessions.remove(&old.id);
        }
        let same_agent = known.as_ref().is_some_and(|node| node.pid == register.pid);
        let message = v1::Registered {
            heartbeat_interval_ms: millis(self.config.heartbeat),
            lease_ms: millis(self.config.lease),
        };
        self.ledger.send(&outbound, v1::coordinator_message::Message::Registered(message));
        let node = Node {
            slots: register.slots,
            cpus: register.cpus,
            accelerator: register.accelerator.clone(),
            address: register.address.clone(),
            pid: register.pid,
            session: Some(Session { id, outbound }),
            lease: Lease::new(self.config.lease, now.at),
            last_heartbeat_ms: now.unix_ms,
            faults: known.as_ref().and_then(|node| node.faults.clone()),
            leaving: false,
            processes: known.map(|node| node.processes).unwrap_or_default(),
        };
        tracing::info!(node = %register.node, slots = node.slots, session = id, "agent registered");
        self.nodes.insert(register.node.clone(), node);
        self.sessions.insert(id, register.node.clone());
        self.take_running(&register, same_agent);
        Ok(id)
    }

    fn check_register(&self, register: &v1::Register) -> Result<(), Error> {
        if register.node.is_empty() || register.slots == 0 {
            return Err(Error::Invalid {
                field: "register",
                value: format!("node {:?} with {} slots", register.node, register.slots),
                constraint: "an agent needs a name and at least one slot".to_owned(),
            });
        }
        match &self.config.build_id {
            Some(wanted) if *wanted != register.build_id => Err(Error::WrongBuild {
                node: register.node.clone(),
                found: register.build_id.clone(),
                wanted: wanted.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Compares what an agent says it runs with what it was believed to run.
    fn take_running(&mut self, register: &v1::Register, same_agent: bool) {
        let now = self.ledger.now.at;
        let node = self.nodes.get_mut(&register.node).expect("it was just inserted");
        for running in &register.running {
            let generation = running.generation.unwrap_or_default();
            let job = self.jobs.get_mut(&running.job_id);
            let index = running.rank as usize;
            let slot = job.as_ref().and_then(|job| job.record.slots.get(index).copied());
            node.processes
                .entry((running.job_id.clone(), running.rank))
                .or_insert_with(|| Process::reported(generation, running.pid, slot))
                .see(generation, Some(running.pid));
            // A rank that counted as lost has a place after all, if the ring is not formed yet and
            // nobody else has its slot.
            let Some(job) = job else { continue };
            let waits = job.record.seats.get(index).is_some_and(Option::is_none);
            let forming = job.record.state.is_placed() && !job.record.formed;
            let was = job.preferred.get(index).and_then(Option::as_ref);
            let here = was.is_none_or(|was| *was == register.node);
            if forming && waits && here && generation <= job.generation() {
                job.record.seats[index] = Some(register.node.clone());
                let message = format!("rank {} is back on {}", running.rank, register.node);
                job.record.reason.clone_from(&message);
                self.ledger.event(job, "rank_back", message);
            }
        }

        let is_running = |key: &(String, u32)| {
            register.running.iter().any(|running| running.job_id == key.0 && running.rank == key.1)
        };
        let missing: Vec<_> =
            node.processes.keys().filter(|key| !is_running(key)).cloned().collect();
        for key in missing {
            let process = node.processes.get_mut(&key).expect("the key was just read");
            let seen = match process.presence {
                Presence::Requested => false,
                Presence::Seen => true,
                Presence::Missing { seen, .. } => seen,
            };
            if same_agent {
                process.presence = Presence::Missing { since: now, seen };
                continue;
            }
            // Another agent process: no news of this rank's end will come any more.
            let process = node.processes.remove(&key).expect("the key was just read");
            let Some(job) = self.jobs.get_mut(&key.0) else { continue };
            if seen && !process.doomed && job.sits(key.1, &register.node) {
                let counts = process.generation == job.generation();
                let how = "its agent was restarted".to_owned();
                self.ledger.lose_blameless(job, key.1, how, counts);
            }
        }
    }

    pub(super) fn heartbeat(&mut self, session: u64, heartbeat: v1::Heartbeat) {
        let now = self.ledger.now;
        let Some(name) = self.sessions.get(&session) else { return };
        let node = self.nodes.get_mut(name).expect("sessions belong to nodes");
        node.lease.renew(now.at);
        node.last_heartbeat_ms = now.unix_ms;
        if heartbeat.sequence != 0
            && let Some(session) = &node.session
        {
            let ack = v1::HeartbeatAck { sequence: heartbeat.sequence };
            let message = v1::coordinator_message::Message::HeartbeatAck(ack);
            self.ledger.send(&session.outbound, message);
        }
        for mut status in heartbeat.ranks {
            let key = (status.job_id.clone(), status.rank);
            let Some(process) = node.processes.get_mut(&key) else { continue };
            process.see(status.generation.unwrap_or_default(), Some(status.pid));
            let Some(job) = self.jobs.get_mut(&status.job_id) else { continue };
            if !job.sits(status.rank, name) || job.record.state.is_ended() {
                continue;
            }
            job.progress(status.step);
            // A recovery is followed closely, and a ring that broke is acted on at once.
            self.unsettled |= job.recovery.is_some() || status.phase() == v1::Phase::Join;
            let is_over =
                |faults: &Faults| faults.job_id == status.job_id && status.step > faults.step;
            if node.faults.as_ref().is_some_and(is_over) {
                node.faults = None;
            }
            if let Some(metrics) = status.metrics.take() {
                job.metrics = Some(metrics);
                job.changed = true;
            }
            job.movement.observe(status.rank, &status, now.at);
            let slot = &mut job.statuses[status.rank as usize];
            let differs = slot.as_ref().is_none_or(|old| {
                (old.step, old.phase, old.pid) != (status.step, status.phase, status.pid)
            });
            job.changed |= differs;
            *slot = Some(status);
        }
    }

    pub(super) fn exited(&mut self, session: u64, exited: v1::RankExited) {
        let Some(name) = self.sessions.get(&session).cloned() else { return };
        let node = self.nodes.get_mut(&name).expect("sessions belong to nodes");
        if let Some(session) = &node.session {
            let ack = v1::ExitAck { exit_id: exited.exit_id.clone() };
            self.ledger.send(&session.outbound, v1::coordinator_message::Message::ExitAck(ack));
        }

        let generation = exited.generation.unwrap_or_default();
        let key = (exited.job_id.clone(), exited.rank);
        let reached = match node.processes.get(&key) {
            // About an earlier process of the rank: the report was repeated, or is late.
            Some(process) if generation < process.started => return,
            Some(process) => Some(process.generation),
            None => None,
        };
        let doomed = node.processes.remove(&key).is_some_and(|process| process.doomed);
        let Some(job) = self.jobs.get_mut(&exited.job_id).filter(|_| !doomed) else { return };
        let awaited = reached.is_some() || job.attach_until.is_some();
        if !awaited || !job.sits(exited.rank, &name) || job.is_done(exited.rank) {
            return;
        }
        if job.record.state.is_ended() {
            return;
        }
        let reaches_its_end = job.record.formed || job.is_stopping() || job.is_finished();
        if exited.code == Some(0) && !reaches_its_end {
            // It was told to stop, in the ring that has broken meanwhile: the one that is being
            // formed has not begun, and waits for this seat.
            let how = format!("it ended before {} was formed", job.generation());
            return self.ledger.lose_blameless(job, exited.rank, how, false);
        }
        if exited.code == Some(0) {
            job.record.done[exited.rank as usize] = true;
            job.movement.forget(exited.rank);
            job.dirty = true;
            return;
        }
        let how = describe(&exited);
        if !exited.retryable && !job.is_finished() && !job.is_stopping() {
            self.ledger.event(job, "rank_lost", format!("rank {} on {name}: {how}", exited.rank));
            let reason = format!("rank {}: {how}; running it again would not help", exited.rank);
            return self.ledger.fail(job, &reason);
        }
        let counts = reached.unwrap_or(generation) == job.generation();
        self.ledger.lose(job, exited.rank, how, counts);
    }

    /// An agent was told to end: its ranks checkpoint and stop with their jobs, and get no seat there
    /// any more.
    pub(super) fn leave(&mut self, session: u64, leaving: &v1::Leaving) {
        let Some(name) = self.sessions.get(&session) else { return };
        let node = self.nodes.get_mut(name).expect("sessions belong to nodes");
        tracing::info!(node = %name, grace_ms = leaving.grace_ms, reason = %leaving.reason, "an agent leaves");
        node.leaving = true;
    }

    pub(super) fn close(&mut self, session: u64) {
        let Some(name) = self.sessions.remove(&session) else { return };
        let node = self.nodes.get_mut(&name).expect("sessions belong to nodes");
        node.session = None;
        node.lease.shorten(self.config.session_grace, self.ledger.now.at);
        tracing::warn!(node = %name, session, "an agent's session ended; it may come back");
    }
}

fn describe(exited: &v1::RankExited) -> String {
    // The agent's reason says how it ended, too.
    if !exited.reason.is_empty() {
        return exited.reason.clone();
    }
    match (exited.code, exited.signal) {
        (_, Some(signal)) => format!("ended by signal {signal}"),
        (Some(code), None) => format!("ended with code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

fn millis(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
