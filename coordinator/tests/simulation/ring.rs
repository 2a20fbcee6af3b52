//! What the ranks of one generation do together, reduced to what the coordinator can get wrong: who
//! is in the ring, from which state it goes on, and which step everybody has reached.

use std::collections::BTreeMap;

use ringmaster_proto::v1::Generation;

use super::world::{State, World};

/// A job's generation.
pub(crate) type RingKey = (String, Generation);

/// One ring.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    pub(crate) world_size: usize,
    /// By place in the ring.
    pub(crate) members: BTreeMap<u32, Member>,
    /// A member is gone, or a connection between two.
    pub(crate) broken: bool,
    /// Steps applied when the ring began, as its source says.
    pub(crate) begins_at: Option<u64>,
    /// The step after which all stop, because one of them was asked to.
    pub(crate) stops_after: Option<u64>,
    /// Steps for which it was decided whether to save.
    saves: BTreeMap<u64, bool>,
    pub(crate) saving: bool,
    /// Rank 0 has handed in the summary.
    pub(crate) finished: bool,
}

/// A rank in a ring.
#[derive(Debug)]
pub(crate) struct Member {
    process: u64,
    pub(crate) node: String,
    /// Newest step whose *ready* it has entered.
    ready: u64,
    stop: bool,
}

/// How a wait in the ring goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait<T> {
    NotYet,
    Broken,
    Done(T),
}

impl World {
    /// A rank was told the plan and takes its place.
    pub(crate) fn enter(
        &self,
        key: &RingKey,
        place: u32,
        world_size: u32,
        process: u64,
        node: &str,
    ) {
        self.with(|state| {
            let now = state.now;
            let ring = state.rings.entry(key.clone()).or_default();
            ring.world_size = world_size as usize;
            let member = Member { process, node: node.to_owned(), ready: 0, stop: false };
            if let Some(other) = ring.members.insert(place, member)
                && other.process != process
            {
                let what = format!("{} {}: place {place} is taken twice", key.0, key.1);
                state.violate_at(now, "a rank is never started twice in one generation", what);
            }
        });
    }

    /// The source says from which step the ring goes on.
    pub(crate) fn begin(&self, key: &RingKey, step: u64) {
        self.ring(key, |ring| ring.begins_at = Some(step));
    }

    /// From which step the ring goes on, once all are there.
    pub(crate) fn begun(&self, key: &RingKey) -> Wait<u64> {
        self.ring(key, |ring| match ring.begins_at {
            _ if ring.broken => Wait::Broken,
            Some(step) if ring.members.len() == ring.world_size => Wait::Done(step),
            _ => Wait::NotYet,
        })
    }

    /// A member enters *ready* of a step.
    pub(crate) fn ready(&self, key: &RingKey, place: u32, step: u64, stop: bool) {
        self.ring(key, |ring| {
            let member = ring.members.get_mut(&place).expect("it has entered");
            (member.ready, member.stop) = (step, stop);
            if ring.members.values().all(|member| member.ready >= step)
                && ring.members.values().any(|member| member.stop)
            {
                ring.stops_after.get_or_insert(step);
            }
        });
    }

    /// Whether all have entered *ready* of this step. Whoever did not learn it before the ring broke
    /// does not learn it afterwards.
    pub(crate) fn passed(&self, key: &RingKey, step: u64) -> Wait<()> {
        self.ring(key, |ring| {
            if ring.broken {
                Wait::Broken
            } else if ring.members.values().all(|member| member.ready >= step) {
                Wait::Done(())
            } else {
                Wait::NotYet
            }
        })
    }

    pub(crate) fn stops_after(&self, key: &RingKey) -> Option<u64> {
        self.ring(key, |ring| ring.stops_after)
    }

    /// Whether a checkpoint of this step is written: the same for all, and not while the last one is
    /// being written.
    pub(crate) fn saves(&self, key: &RingKey, step: u64) -> bool {
        self.ring(key, |ring| {
            let free = !ring.saving;
            let save = *ring.saves.entry(step).or_insert(free);
            ring.saving |= save;
            save
        })
    }

    pub(crate) fn saved(&self, key: &RingKey) {
        self.ring(key, |ring| ring.saving = false);
    }

    pub(crate) fn finish_ring(&self, key: &RingKey) {
        self.ring(key, |ring| ring.finished = true);
    }

    /// Whether rank 0 has handed in the summary.
    pub(crate) fn ring_finished(&self, key: &RingKey) -> Wait<()> {
        self.ring(key, |ring| {
            if ring.finished {
                Wait::Done(())
            } else if ring.broken {
                Wait::Broken
            } else {
                Wait::NotYet
            }
        })
    }

    /// A member leaves, or fails: its peers notice.
    pub(crate) fn break_ring(&self, key: &RingKey) {
        self.ring(key, |ring| ring.broken = true);
    }

    fn ring<T>(&self, key: &RingKey, act: impl FnOnce(&mut Ring) -> T) -> T {
        self.with(|state| act(state.rings.entry(key.clone()).or_default()))
    }
}

impl State {
    /// The kernel closes a dead process's connections.
    pub(crate) fn leave_rings(&mut self, process: u64) {
        for ring in self.rings.values_mut() {
            if ring.members.values().any(|member| member.process == process) && !ring.finished {
                ring.broken = true;
            }
        }
    }

    /// Rings that train, in order.
    pub(crate) fn live_rings(&self) -> Vec<RingKey> {
        let live =
            |ring: &Ring| !ring.broken && !ring.finished && ring.members.len() == ring.world_size;
        self.rings.iter().filter(|(_, ring)| live(ring)).map(|(key, _)| key.clone()).collect()
    }
}
