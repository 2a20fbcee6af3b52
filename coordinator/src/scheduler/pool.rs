//! Slots: how many are free where, and which of them a gang takes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Gang, Node, Problem};

/// Free slots by node, and counted by accelerator.
pub(super) struct Pool<'a> {
    nodes: BTreeMap<&'a str, (&'a Node, u32)>,
    kinds: BTreeMap<&'a str, Kind<'a>>,
}

/// The nodes with one accelerator.
#[derive(Default)]
struct Kind<'a> {
    free: u32,
    /// Of all nodes that take ranks, and of all others.
    slots: (u32, u32),
    /// On open nodes.
    strays: u32,
    /// Nodes with free slots, by how many and then by name.
    with_room: BTreeSet<(u32, &'a str)>,
}

impl<'a> Pool<'a> {
    /// Counts what is free once every taken seat is; nodes that take no ranks have nothing to give.
    pub(super) fn new(problem: &'a Problem) -> Self {
        let free = |node: &Node| {
            if node.is_open() { node.slots.saturating_sub(node.strays) } else { 0 }
        };
        let nodes = problem.nodes.iter().map(|node| (node.name.as_str(), (node, free(node))));
        let mut nodes: BTreeMap<_, _> = nodes.collect();
        for seat in problem.gangs.iter().flat_map(|gang| gang.seats.iter().flatten()) {
            if let Some((_, free)) = nodes.get_mut(seat.as_str()) {
                *free = free.saturating_sub(1);
            }
        }
        let mut kinds: BTreeMap<&str, Kind<'_>> = BTreeMap::new();
        for (name, (node, free)) in &nodes {
            kinds.entry(&node.accelerator).or_default().add(name, node, *free);
        }
        Self { nodes, kinds }
    }

    fn kind(&self, accelerator: &str) -> Option<&Kind<'a>> {
        self.kinds.get(accelerator)
    }

    /// Free slots with an accelerator.
    pub(super) fn free(&self, accelerator: &str) -> u32 {
        self.kind(accelerator).map_or(0, |kind| kind.free)
    }

    /// Free slots that a gang may have: not those of nodes that it avoids.
    pub(super) fn free_for(&self, gang: &Gang) -> u32 {
        let avoided: u32 = self.avoided(gang).map(|(_, free)| free).sum();
        self.free(&gang.accelerator) - avoided
    }

    /// Slots on open nodes that a gang avoids, but for those that it has there.
    pub(super) fn slots_avoided(&self, gang: &Gang) -> u32 {
        let own = |node: &Node| {
            let seats = gang.seats.iter().flatten();
            super::count(seats.filter(|name| **name == node.name).count())
        };
        let lost = |node: &Node| node.slots.saturating_sub(own(node));
        self.avoided(gang).filter(|(node, _)| node.is_open()).map(|(node, _)| lost(node)).sum()
    }

    /// The nodes with its accelerator that a gang avoids, with the slots that are free there.
    fn avoided(&self, gang: &Gang) -> impl Iterator<Item = (&'a Node, u32)> + use<'_, 'a> {
        let nodes: Vec<_> = gang
            .avoids
            .keys()
            .filter_map(|name| self.nodes.get(name.as_str()).copied())
            .filter(|(node, _)| node.accelerator == gang.accelerator)
            .collect();
        nodes.into_iter()
    }

    /// All slots with an accelerator: on nodes that take ranks, and on others; absent without any node.
    pub(super) fn slots(&self, accelerator: &str) -> Option<(u32, u32)> {
        self.kind(accelerator).map(|kind| kind.slots)
    }

    /// Ranks with an accelerator, on open nodes, that belong to no gang and end soon.
    pub(super) fn strays(&self, accelerator: &str) -> u32 {
        self.kind(accelerator).map_or(0, |kind| kind.strays)
    }

    /// True when a node is known and closed.
    pub(super) fn is_closed(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|(node, _)| node.closed)
    }

    /// Slots that another gang could have if one had gone: its seats on nodes that are open and that the
    /// other does not avoid.
    pub(super) fn held_by(&self, seats: &[Option<String>], to: &Gang) -> u32 {
        let open = |name: &&String| {
            let node = self.nodes.get(name.as_str());
            node.is_some_and(|(node, _)| node.is_open()) && !to.avoids.contains_key(*name)
        };
        super::count(seats.iter().flatten().filter(open).count())
    }

    /// Seats `wanted` more ranks of a gang; so many slots must be free.
    ///
    /// Ranks go back to where they were, if they can: their files are there. The others go to nodes
    /// that have some of their gang already, then to the smallest node that holds all that are left,
    /// else to the one with most room: so that as few nodes as can be share a gang.
    pub(super) fn seat(&mut self, gang: &Gang, seats: &mut [Option<String>], mut wanted: u32) {
        for (seat, preferred) in seats.iter_mut().zip(&gang.preferred) {
            let Some(name) = preferred.as_deref().filter(|_| seat.is_none() && wanted > 0) else {
                continue;
            };
            let is_suspect = self.nodes.get(name).is_some_and(|(node, _)| node.suspect);
            if is_suspect || gang.avoids.contains_key(name) {
                continue;
            }
            if self.take(name, &gang.accelerator) {
                *seat = Some(name.to_owned());
                wanted -= 1;
            }
        }
        while wanted > 0 {
            let name = self.best(gang, seats, wanted);
            for seat in seats.iter_mut().filter(|seat| seat.is_none()) {
                if wanted == 0 || !self.take(name, &gang.accelerator) {
                    break;
                }
                *seat = Some(name.to_owned());
                wanted -= 1;
            }
        }
    }

    /// Takes one slot of a node, if it fits and has one.
    fn take(&mut self, name: &str, accelerator: &str) -> bool {
        let Some((node, free)) = self.nodes.get_mut(name) else { return false };
        if node.accelerator != accelerator || *free == 0 {
            return false;
        }
        let (node, name) = (*node, node.name.as_str());
        let kind = self.kinds.get_mut(node.accelerator.as_str()).expect("every node is of a kind");
        kind.with_room.remove(&(*free, name));
        *free -= 1;
        kind.free -= 1;
        if *free > 0 {
            kind.with_room.insert((*free, name));
        }
        true
    }

    fn best(&self, gang: &Gang, seats: &[Option<String>], missing: u32) -> &'a str {
        let kind = self.kind(&gang.accelerator).expect("enough slots are free");
        let may = |(free, name): &(u32, &str)| *free > 0 && !gang.avoids.contains_key(*name);
        let homes = seats.iter().flatten().filter_map(|seat| {
            let (node, free) = self.nodes.get(seat.as_str())?;
            (node.accelerator == gang.accelerator).then_some((*free, node.name.as_str()))
        });
        let home = homes.filter(may).max_by_key(|(free, name)| (*free, Reverse(*name)));
        let enough = || kind.with_room.range((missing, "")..).find(|room| may(room)).copied();
        let most = || {
            let (most, _) = kind.with_room.iter().rev().find(|room| may(room))?;
            kind.with_room.range((*most, "")..).find(|room| may(room)).copied()
        };
        let best = home.or_else(enough).or_else(most);
        best.map(|(_, name)| name).expect("enough slots are free")
    }
}

impl<'a> Kind<'a> {
    fn add(&mut self, name: &'a str, node: &Node, free: u32) {
        self.free += free;
        if free > 0 {
            self.with_room.insert((free, name));
        }
        if node.is_open() {
            self.slots.0 += node.slots;
            self.strays += node.strays.min(node.slots);
        } else {
            self.slots.1 += node.slots;
        }
    }
}
