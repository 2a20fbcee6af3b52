//! Ranks as processes: which run where, what strikes them, and what two agents of one name do.

use std::collections::BTreeMap;
use std::time::Duration;

use ringmaster_coordinator::state::State as JobState;
use ringmaster_proto::v1::Generation;

use super::history::At;
use super::ring::RingKey;
use super::world::{State, World, short};

/// A rank's process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// The name its agent registers under.
    pub(crate) node: String,
    /// The machine.
    pub(crate) host: String,
    pub(crate) job_id: String,
    pub(crate) seat: u32,
    pub(crate) generation: Generation,
    /// It stands where it is; `mute` if it does not even give signs of life.
    pub(crate) hung: bool,
    pub(crate) mute: bool,
    /// Until when killing it comes to nothing.
    pub(crate) survives: Option<Duration>,
}

impl Process {
    /// One that has just been started.
    pub(crate) fn new(node: &str, host: &str, key: (&str, u32), generation: Generation) -> Self {
        Self {
            node: node.to_owned(),
            host: host.to_owned(),
            job_id: key.0.to_owned(),
            seat: key.1,
            generation,
            hung: false,
            mute: false,
            survives: None,
        }
    }
}

impl World {
    pub(crate) fn start_process(&self, process: Process) -> u64 {
        self.with(|state| {
            state.check_start(&process);
            state.last_process += 1;
            let id = state.last_process;
            state.processes.insert(id, process);
            id
        })
    }

    /// May be repeated.
    pub(crate) fn end_process(&self, id: u64) {
        self.with(|state| {
            if state.processes.remove(&id).is_some() {
                state.leave_rings(id);
            }
        });
    }

    pub(crate) fn is_hung(&self, id: u64) -> bool {
        self.with(|state| state.processes.get(&id).is_some_and(|process| process.hung))
    }

    pub(crate) fn is_mute(&self, id: u64) -> bool {
        self.with(|state| state.processes.get(&id).is_some_and(|process| process.mute))
    }

    /// Whether a kill comes to nothing.
    pub(crate) fn survives(&self, id: u64) -> bool {
        self.with(|state| {
            let now = state.now;
            let process = state.processes.get(&id);
            process.and_then(|process| process.survives).is_some_and(|until| now < until)
        })
    }

    /// An agent has started, or has ended.
    pub(crate) fn agent_lives(&self, node: &str, host: &str) {
        self.with(|state| {
            // Another process than one that ran here before: the name may be another's meanwhile.
            state.holders.retain(|_, holder| holder != host);
            state.agents.entry(node.to_owned()).or_default().insert(host.to_owned());
        });
    }

    /// A rank has applied a step.
    pub(crate) fn stepped(&self, key: &RingKey, at: At) {
        self.with(|state| {
            state.steps += 1;
            state.check_replicas(key, at);
            state.made_step(key, at.step);
            let newest = state.stepped.entry(key.0.clone()).or_default();
            *newest = (*newest).max(key.1);
            let newest = *newest;
            state.check_step_is_wanted(key, newest);
        });
    }
}

impl State {
    fn check_start(&mut self, process: &Process) {
        let now = self.now;
        let Process { node, host, job_id, seat, generation, .. } = process;
        let same = |other: &&Process| {
            (&other.job_id, other.seat, other.generation) == (job_id, *seat, *generation)
        };
        if let Some(other) = self.processes.values().find(same) {
            let what = format!("{job_id}/{seat} {generation} on {host} and on {}", other.host);
            self.violate_at(now, "a rank is never started twice in one generation", what);
        }
        let running = self.processes.values().filter(|other| other.host == *host).count();
        if running >= self.slots[node] as usize {
            let what = format!("{host} runs {running}, and is to start {job_id}/{seat}");
            self.violate_at(now, "no node runs more ranks than it has slots", what);
        }
        // What was decided before the node was drained may still come about.
        let drained = self.drained.get(node).map(|then| then.get(job_id).copied());
        if drained.is_some_and(|then| then.unwrap_or_default() < *generation) {
            let what = format!("{node} is to start {job_id}/{seat} of {generation}");
            self.violate_at(now, "a drained node gets no new rank", what);
        }
        self.check_holder(process);
    }

    /// While one agent of a name lives and is heard, no other one runs ranks under that name.
    fn check_holder(&mut self, process: &Process) {
        let Process { node, host, job_id, seat, .. } = process;
        let lives =
            |holder: &String| self.agents.get(node).is_some_and(|hosts| hosts.contains(holder));
        let holder = self.holders.get(node).filter(|holder| *holder != host && lives(holder));
        if let Some(holder) = holder.filter(|_| self.hears(node)) {
            let what = format!("{host} starts {job_id}/{seat} as {node}, which is {holder}");
            return self.violate_at(self.now, "a name has one agent at a time", what);
        }
        self.holders.insert(node.clone(), host.clone());
    }

    /// A coordinator that is restarted keeps the names only of those agents that run something.
    pub(crate) fn forget_idle_holders(&mut self) {
        let processes = &self.processes;
        let runs = |node: &String, host: &String| {
            processes.values().any(|process| process.node == *node && process.host == *host)
        };
        self.holders.retain(|node, host| runs(node, host));
    }

    fn check_step_is_wanted(&mut self, key: &RingKey, newest: Generation) {
        let is_paused = self.records.get(&key.0).is_some_and(|job| job.state == JobState::Paused);
        let (invariant, why) = match (newest == key.1, is_paused) {
            (false, _) => (
                "a stale generation steps only where the coordinator is not heard",
                format!("after {newest}"),
            ),
            (true, true) => (
                "a paused job steps only where the coordinator is not heard",
                "and is paused".to_owned(),
            ),
            (true, false) => return,
        };
        let members = self.rings.get(key).map(|ring| &ring.members);
        let nodes = members.into_iter().flat_map(BTreeMap::values).map(|member| &member.node);
        if let Some(node) = nodes.filter(|node| self.hears(node)).max() {
            let what = format!("{} {} steps {why}, with a rank on {node}", key.0, key.1);
            self.violate_at(self.now, invariant, what);
        }
    }

    /// A machine is gone with all its processes.
    pub(crate) fn end_processes_of(&mut self, host: &str) {
        let of = |process: &&u64| self.processes[process].host == host;
        for id in self.processes.keys().filter(of).copied().collect::<Vec<_>>() {
            self.processes.remove(&id);
            self.leave_rings(id);
        }
        for hosts in self.agents.values_mut() {
            hosts.remove(host);
        }
    }

    // ---- What strikes them; false when there is nobody to strike

    /// Kills one of the ranks that run; its agent finds out.
    pub(crate) fn kill(&mut self, pick: usize) -> bool {
        let Some(id) = self.picked(pick) else { return false };
        self.processes.remove(&id);
        self.leave_rings(id);
        true
    }

    /// Stops one of the ranks that run where it stands.
    pub(crate) fn hang(&mut self, pick: usize, mute: bool) -> bool {
        let Some(id) = self.picked(pick) else { return false };
        if let Some(process) = self.processes.get_mut(&id) {
            (process.hung, process.mute) = (true, mute);
        }
        true
    }

    /// Stops one of the ranks that run, and no kill ends it within this time.
    pub(crate) fn make_undead(&mut self, pick: usize, lasts: Duration) -> bool {
        let until = self.now.saturating_add(lasts);
        let Some(id) = self.picked(pick) else { return false };
        if let Some(process) = self.processes.get_mut(&id) {
            (process.hung, process.mute) = (true, true);
            process.survives = Some(until);
        }
        true
    }

    /// Lets go of the processes whose time as undead is over.
    pub(crate) fn relent(&mut self) {
        let now = self.now;
        for process in self.processes.values_mut() {
            if process.survives.take_if(|until| *until <= now).is_some() {
                (process.hung, process.mute) = (false, false);
            }
        }
    }

    fn picked(&mut self, pick: usize) -> Option<u64> {
        let mortal = self.processes.iter().filter(|(_, process)| process.survives.is_none());
        let running: Vec<u64> = mortal.map(|(id, _)| *id).collect();
        let id = *running.get(pick.checked_rem(running.len())?)?;
        let Process { host, job_id, seat, .. } = self.processes[&id].clone();
        self.log(&format!("---- strikes {}/{seat} on {host}", short(&job_id)));
        Some(id)
    }
}
