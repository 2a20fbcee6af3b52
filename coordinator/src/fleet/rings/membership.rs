//! Who has joined a generation, and what all of its ranks were told.

use std::collections::BTreeMap;

use ringmaster_proto::{Seat, v1};

use crate::fleet::Reply;

/// The ring of the current generation.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    /// Ranks that wait for the others, by seat.
    waiting: BTreeMap<Seat, (v1::JoinRequest, Reply<v1::JoinReply>)>,
    /// What every rank was told once all had joined, by ring rank; empty before, and after a restart of
    /// the coordinator.
    told: Vec<v1::JoinReply>,
}

impl Membership {
    /// Lets a rank wait for the others; returns its earlier call if that still waited.
    pub(crate) fn wait(
        &mut self,
        request: v1::JoinRequest,
        reply: Reply<v1::JoinReply>,
    ) -> Option<Reply<v1::JoinReply>> {
        self.waiting.insert(Seat(request.rank), (request, reply)).map(|(_, replaced)| replaced)
    }

    /// Takes those that wait, in the order of these seats.
    pub(crate) fn take_in_order(
        &mut self,
        seats: &[Seat],
    ) -> (Vec<v1::JoinRequest>, Vec<Reply<v1::JoinReply>>) {
        let mut waiting = std::mem::take(&mut self.waiting);
        seats.iter().filter_map(|seat| waiting.remove(seat)).unzip()
    }

    /// Keeps what every rank is told, for those that the answer does not reach.
    pub(crate) fn tell(&mut self, told: Vec<v1::JoinReply>) {
        self.told = told;
    }

    /// What every rank was told, by ring rank.
    pub(crate) fn told(&self) -> &[v1::JoinReply] {
        &self.told
    }

    /// Forgets the ring; returns those that still waited.
    pub(crate) fn clear(&mut self) -> Vec<Reply<v1::JoinReply>> {
        self.told.clear();
        self.take_waiting()
    }

    /// Returns those that still waited.
    pub(crate) fn take_waiting(&mut self) -> Vec<Reply<v1::JoinReply>> {
        std::mem::take(&mut self.waiting).into_values().map(|(_, reply)| reply).collect()
    }

    /// Seats that have joined and wait.
    pub(crate) fn joined_seats(&self) -> impl Iterator<Item = Seat> + use<'_> {
        self.waiting.keys().copied()
    }

    /// Ranks that have joined and wait.
    pub(crate) fn joined(&self) -> usize {
        self.waiting.len()
    }
}
