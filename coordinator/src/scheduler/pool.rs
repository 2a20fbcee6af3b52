//! Slots: how many are free where, and which of them a gang takes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Gang, Node, Problem};

/// Free slots by node.
pub(super) struct Pool<'a> {
    nodes: BTreeMap<&'a str, (&'a Node, u32)>,
}

impl<'a> Pool<'a> {
    /// Counts what is free once every taken seat is; closed nodes have nothing to give.
    pub(super) fn new(problem: &'a Problem) -> Self {
        let free = |node: &Node| match node.closed {
            true => 0,
            false => node.slots.saturating_sub(node.strays),
        };
        let nodes = problem.nodes.iter().map(|node| (node.name.as_str(), (node, free(node))));
        let mut pool = Self { nodes: nodes.collect() };
        for seat in problem.gangs.iter().flat_map(|gang| gang.seats.iter().flatten()) {
            if let Some((_, free)) = pool.nodes.get_mut(seat.as_str()) {
                *free = free.saturating_sub(1);
            }
        }
        pool
    }

    fn fitting(&self, accelerator: &str) -> impl Iterator<Item = (&'a str, &'a Node, u32)> {
        let all = self.nodes.iter().map(|(name, (node, free))| (*name, *node, *free));
        all.filter(move |(_, node, _)| node.accelerator == accelerator)
    }

    /// Free slots with an accelerator.
    pub(super) fn free(&self, accelerator: &str) -> u32 {
        self.fitting(accelerator).map(|(_, _, free)| free).sum()
    }

    /// All slots with an accelerator: on open nodes, and on closed ones.
    pub(super) fn slots(&self, accelerator: &str) -> (u32, u32) {
        self.fitting(accelerator).fold((0, 0), |(open, closed), (_, node, _)| match node.closed {
            true => (open, closed + node.slots),
            false => (open + node.slots, closed),
        })
    }

    /// True when a node has the accelerator.
    pub(super) fn knows(&self, accelerator: &str) -> bool {
        self.fitting(accelerator).next().is_some()
    }

    /// Ranks with an accelerator, on open nodes, that belong to no gang and end soon.
    pub(super) fn strays(&self, accelerator: &str) -> u32 {
        let open = self.fitting(accelerator).filter(|(_, node, _)| !node.closed);
        open.map(|(_, node, _)| node.strays.min(node.slots)).sum()
    }

    /// True when a node is known and closed.
    pub(super) fn is_closed(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|(node, _)| node.closed)
    }

    /// Slots that would be free if the gang had gone: its seats on nodes that are open.
    pub(super) fn held_by(&self, seats: &[Option<String>]) -> u32 {
        let open =
            |name: &&String| self.nodes.get(name.as_str()).is_some_and(|(node, _)| !node.closed);
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
            if self.take(name, &gang.accelerator) {
                *seat = Some(name.to_owned());
                wanted -= 1;
            }
        }
        while wanted > 0 {
            let name = self.best(&gang.accelerator, seats, wanted);
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
        match self.nodes.get_mut(name) {
            Some((node, free)) if node.accelerator == accelerator && *free > 0 => {
                *free -= 1;
                true
            }
            _ => false,
        }
    }

    fn best(&self, accelerator: &str, seats: &[Option<String>], missing: u32) -> &'a str {
        let with_room = || self.fitting(accelerator).filter(|(_, _, free)| *free > 0);
        let is_home = |name: &str| seats.iter().flatten().any(|seat| seat == name);
        let home = with_room()
            .filter(|(name, _, _)| is_home(name))
            .max_by_key(|(name, _, free)| (*free, Reverse(*name)));
        let enough = || {
            with_room()
                .filter(|(_, _, free)| *free >= missing)
                .min_by_key(|(name, _, free)| (*free, *name))
        };
        let most = || with_room().max_by_key(|(name, _, free)| (*free, Reverse(*name)));
        let best = home.or_else(enough).or_else(most);
        best.map(|(name, _, _)| name).expect("enough slots are free")
    }
}
