//! What the ranks of one generation do together, reduced to what the coordinator can get wrong: who
//! is in the ring, from which state it goes on, and which step everybody has reached.

use std::collections::{BTreeMap, BTreeSet};

use ringmaster_proto::v1::Generation;

use super::history::{At, Digest, Gradients, Held};
use super::world::{State, World, short};

/// A job's generation.
pub(crate) type RingKey = (String, Generation);

/// One ring.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ring {
    pub(crate) world_size: usize,
    /// By place in the ring.
    pub(crate) members: BTreeMap<u32, Member>,
    /// A member is gone, or a connection between two.
    pub(crate) broken: bool,
    /// The places of those who were the first to go, as far as their peers can tell.
    lost: BTreeSet<u32>,
    /// It breaks when the first of its ranks has ended, before the others know that all are through.
    pub(crate) frail: bool,
    /// Its source has read what is stored.
    pub(crate) stored: bool,
    /// What the ring goes on from, as its source says.
    pub(crate) begins_at: Option<At>,
    /// All members have compared their states.
    agreed: bool,
    /// The step after which all stop, because one of them was asked to.
    pub(crate) stops_after: Option<u64>,
    /// Steps for which it was decided whether to save.
    saves: BTreeMap<u64, bool>,
    pub(crate) saving: bool,
    /// The state after the newest step.
    newest: Option<At>,
    /// Rank 0 has handed in the summary, or all have passed the last barrier.
    pub(crate) finished: bool,
}

/// A rank in a ring.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) process: u64,
    pub(crate) node: String,
    /// What it held when it joined.
    pub(crate) held: Option<Held>,
    /// Gradients it had held and has applied before the ring began.
    pub(crate) applied: Option<Gradients>,
    /// What it holds at the ring's beginning.
    pub(crate) posted: Option<Digest>,
    /// Newest step whose *ready* it has entered.
    ready: u64,
    stop: bool,
    /// It waits in the barrier that ends a stop.
    at_the_end: bool,
}

/// How a wait in the ring goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait<T> {
    NotYet,
    Broken,
    Done(T),
}

impl Member {
    pub(crate) fn new(process: u64, node: &str, held: Option<Held>) -> Self {
        Self {
            process,
            node: node.to_owned(),
            held,
            applied: None,
            posted: None,
            ready: 0,
            stop: false,
            at_the_end: false,
        }
    }
}

impl Ring {
    fn is_whole(&self) -> bool {
        self.members.len() == self.world_size
    }

    /// It breaks, if it has not; those who go because of that are not blamed.
    fn lose(&mut self, places: BTreeSet<u32>) {
        if !std::mem::replace(&mut self.broken, true) {
            self.lost = places;
        }
    }

    /// Waits for something that all members do.
    fn wait_for_all(&self, done: impl Fn(&Member) -> bool) -> Wait<()> {
        if self.broken {
            Wait::Broken
        } else if self.is_whole() && self.members.values().all(done) {
            Wait::Done(())
        } else {
            Wait::NotYet
        }
    }
}

impl World {
    /// A rank was told the plan and takes its place.
    pub(crate) fn enter(&self, key: &RingKey, place: u32, world_size: u32, member: Member) {
        self.with(|state| {
            let now = state.now;
            let ring = state.rings.entry(key.clone()).or_default();
            ring.world_size = world_size as usize;
            let process = member.process;
            if let Some(other) = ring.members.insert(place, member)
                && other.process != process
            {
                let what = format!("{} {}: place {place} is taken twice", key.0, key.1);
                state.violate_at(now, "a rank is never started twice in one generation", what);
            }
        });
    }

    /// Whether a node has connected to every other member.
    pub(crate) fn connected(&self, key: &RingKey, node: &str) -> Wait<()> {
        self.with(|state| match state.rings.get(key) {
            Some(ring) if !ring.broken && state.is_cut_from(ring, node) => Wait::NotYet,
            Some(ring) => ring.wait_for_all(|_| true),
            None => Wait::NotYet,
        })
    }

    /// The source says what the ring goes on from.
    pub(crate) fn begin(&self, key: &RingKey, at: At, stored: bool) {
        self.ring(key, |ring| (ring.begins_at, ring.stored) = (Some(at), stored));
    }

    /// What the ring goes on from.
    pub(crate) fn begun(&self, key: &RingKey) -> Wait<At> {
        self.ring(key, |ring| match ring.begins_at {
            _ if ring.broken => Wait::Broken,
            Some(at) => Wait::Done(at),
            None => Wait::NotYet,
        })
    }

    /// A member shows its state to the others.
    pub(crate) fn post(
        &self,
        key: &RingKey,
        place: u32,
        digest: Digest,
        applied: Option<Gradients>,
    ) {
        self.ring(key, |ring| {
            let member = ring.members.get_mut(&place).expect("it has entered");
            (member.posted, member.applied) = (Some(digest), applied);
        });
    }

    /// Whether all members have shown their states; the first to see it compares them.
    pub(crate) fn agreed(&self, key: &RingKey) -> Wait<()> {
        self.with(|state| {
            let Some(ring) = state.rings.get_mut(key) else { return Wait::NotYet };
            let wait = ring.wait_for_all(|member| member.posted.is_some());
            if wait == Wait::Done(()) && !std::mem::replace(&mut ring.agreed, true) {
                let ring = ring.clone();
                state.check_beginning(key, &ring);
            }
            wait
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
        self.ring(key, |ring| ring.wait_for_all(|member| member.ready >= step))
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

    /// A member has saved and waits for the others before it ends.
    pub(crate) fn reach_the_end(&self, key: &RingKey, place: u32) {
        self.ring(key, |ring| {
            ring.members.get_mut(&place).expect("it has entered").at_the_end = true;
            ring.finished |= ring.wait_for_all(|member| member.at_the_end) == Wait::Done(());
        });
    }

    /// Rank 0 has handed in the summary.
    pub(crate) fn finish_ring(&self, key: &RingKey) {
        self.ring(key, |ring| ring.finished = true);
    }

    /// Whether the ring's members may end.
    pub(crate) fn ring_finished(&self, key: &RingKey) -> Wait<()> {
        self.ring(key, |ring| {
            if ring.broken {
                Wait::Broken
            } else if ring.finished {
                Wait::Done(())
            } else {
                Wait::NotYet
            }
        })
    }

    /// A member leaves, or fails: its peers notice.
    pub(crate) fn break_ring(&self, key: &RingKey, place: u32) {
        self.ring(key, |ring| ring.lose([place].into()));
    }

    /// The places of a ring that one of its members cannot connect to.
    pub(crate) fn unreached(&self, key: &RingKey, node: &str) -> Vec<u32> {
        self.with(|state| {
            let Some(ring) = state.rings.get(key) else { return Vec::new() };
            let is_missing = |place: &u32| {
                let member = ring.members.get(place);
                member.is_none_or(|member| state.are_cut(node, &member.node))
            };
            (0..u32::try_from(ring.world_size).unwrap()).filter(is_missing).collect()
        })
    }

    /// The places of a ring that have failed, as one of its members sees it.
    pub(crate) fn lost(&self, key: &RingKey, place: u32) -> Vec<u32> {
        self.ring(key, |ring| {
            let node = ring.members.get(&place).map(|member| member.node.clone());
            let is_other = |other: &u32| {
                let of = ring.members.get(other).map(|member| member.node.clone());
                *other != place && (ring.lost.len() == 1 || of != node)
            };
            ring.lost.iter().copied().filter(is_other).collect()
        })
    }

    /// Whether ranks of two nodes cannot reach each other.
    pub(crate) fn is_cut(&self, one: &str, other: &str) -> bool {
        self.with(|state| state.are_cut(one, other))
    }

    fn ring<T>(&self, key: &RingKey, act: impl FnOnce(&mut Ring) -> T) -> T {
        self.with(|state| act(state.rings.entry(key.clone()).or_default()))
    }
}

impl State {
    /// The kernel closes a dead process's connections.
    pub(crate) fn leave_rings(&mut self, process: u64) {
        for ring in self.rings.values_mut() {
            let mut members = ring.members.iter();
            let place = members.find(|(_, member)| member.process == process);
            let Some(place) = place.map(|(place, _)| *place) else { continue };
            if !ring.finished || std::mem::take(&mut ring.frail) {
                ring.lose([place].into());
            }
        }
    }

    /// Rings that stand, in order.
    pub(crate) fn live_rings(&self) -> Vec<RingKey> {
        let live = |ring: &Ring| !ring.broken && !ring.finished && ring.is_whole();
        self.rings.iter().filter(|(_, ring)| live(ring)).map(|(key, _)| key.clone()).collect()
    }

    /// Two nodes lose the way to each other: rings over both break. Each side blames the other.
    pub(crate) fn cut(&mut self, one: &str, other: &str) -> usize {
        let mut broken = 0;
        for ring in self.rings.values_mut() {
            let on = |node: &str| ring.members.values().any(|member| member.node == node);
            if on(one) && on(other) && !ring.broken && !ring.finished {
                let cut = |member: &Member| member.node == one || member.node == other;
                let places = ring.members.iter().filter(|(_, member)| cut(member));
                let places = places.map(|(place, _)| *place).collect();
                ring.lose(places);
                broken += 1;
            }
        }
        broken
    }

    /// Whether ranks of two nodes cannot reach each other.
    fn are_cut(&self, one: &str, other: &str) -> bool {
        let pair = (one.min(other).to_owned(), one.max(other).to_owned());
        self.links.get(&pair).is_some_and(|until| *until > self.now)
    }

    /// Whether a node cannot reach a member of a ring.
    fn is_cut_from(&self, ring: &Ring, node: &str) -> bool {
        ring.members.values().any(|member| self.are_cut(node, &member.node))
    }

    /// A member has applied a step: all that have hold the same state.
    pub(crate) fn check_replicas(&mut self, key: &RingKey, at: At) {
        let Some(ring) = self.rings.get_mut(key) else { return };
        let newest = *ring.newest.get_or_insert(at);
        if newest.step < at.step {
            ring.newest = Some(at);
        } else if newest.step == at.step && newest.digest != at.digest {
            let what = format!("{} {} after step {}", short(&key.0), key.1, at.step);
            self.violate_at(self.now, "the replicas of a ring hold one state", what);
        }
    }
}
