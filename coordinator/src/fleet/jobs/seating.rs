//! What a job is to the scheduler, and getting the seats that it decided on.

use ringmaster_proto::Seat;
use tokio::time::Instant;

use super::job::Job;
use crate::fleet::Batch;
use crate::scheduler::{Gang, Standing};
use crate::state::State;

impl Job {
    /// How it stands towards the scheduler; nothing for one that holds and wants no slots.
    pub(crate) fn standing(&self) -> Option<Standing> {
        match self.record.state {
            State::Queued => Some(Standing::Queued),
            state if !state.is_placed() => None,
            _ if self.is_stopping() => Some(Standing::Leaving),
            _ if self.attach_until.is_some() || self.is_finished() => Some(Standing::Held),
            _ if !self.record.formed => Some(Standing::Forming),
            _ => Some(Standing::Training { at_checkpoint: self.at_checkpoint }),
        }
    }

    /// What the scheduler sees of it, if it holds or wants slots.
    pub(crate) fn gang(&self, now: Instant) -> Option<Gang> {
        Some(Gang {
            job_id: self.record.job_id.clone(),
            priority: self.record.priority,
            sequence: self.record.sequence,
            accelerator: self.spec.accelerator.clone(),
            min_ranks: self.spec.min_ranks,
            standing: self.standing()?,
            seats: self.record.seats.clone(),
            preferred: self.preferred.clone(),
            avoids: self.evidence.avoided(now),
        })
    }

    /// Seats one rank on a slot of a node.
    pub(crate) fn sit(&mut self, seat: Seat, node: String, slot: u32) {
        self.record.slots[seat.index()] = slot;
        self.record.seats[seat.index()] = Some(node);
        self.dirty = true;
    }

    /// Takes in that its seats have changed: they are its first ones, some of those it had lost, or more
    /// than its ring has.
    pub(crate) fn seated(&mut self, batch: &mut Batch) {
        let nodes = self.nodes();
        let (taken, of) = (self.taken(), self.of_all());
        if self.record.state == State::Queued {
            let is_new = self.record.generation.is_none();
            let why = if is_new { "first placement" } else { "placed again" };
            let old = self.generation();
            let generation = self.open_generation(batch, why);
            // Parts of checkpoints that the ring before has stored are no parts of the next one's.
            self.refuse_stale(batch, old);
            self.record.state = State::Starting;
            self.record.reason = format!("forming generation {generation} on {nodes}");
            let message = format!("{taken}{of} ranks on {nodes}, generation {generation}");
            return self.event(batch, "placed", message);
        }
        if self.record.formed {
            let ring = self.record.ring.len();
            let (kind, why) = if taken > ring {
                ("growing", format!("growing from {ring} to {taken}{of} ranks ({nodes})"))
            } else {
                ("moving", format!("leaving closed nodes for {nodes}, {taken}{of} ranks"))
            };
            return self.form_anew(batch, State::Starting, kind, &why);
        }
        let generation = self.generation();
        self.record.reason = format!("forming generation {generation} on {nodes}");
        let message = if self.is_whole() {
            format!("its lost ranks have seats again ({nodes})")
        } else {
            format!("{taken}{of} ranks have seats ({nodes})")
        };
        self.event(batch, "placed", message);
    }

    /// The nodes it sits on, each once, in the order of seats.
    fn nodes(&self) -> String {
        let mut nodes: Vec<&str> = Vec::new();
        for node in self.record.seats.iter().flatten() {
            if !nodes.contains(&node.as_str()) {
                nodes.push(node);
            }
        }
        nodes.join(", ")
    }
}
