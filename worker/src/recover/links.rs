//! The links of a fresh ring, measured once and told to people.

use ringmaster_proto::v1::{Generation, JoinReply, NoteKind, StateSource};
use tch::Tensor;

use crate::collective::{Collective, ReduceOp};
use crate::error::Error;
use crate::health::links::{self, Links};
use crate::rank::Rank;

impl Rank {
    /// Measures the ring's links if no rank of it has done so before: a recovery waits for nothing
    /// that survivors have been through.
    pub(crate) fn check_links(
        &mut self,
        generation: Generation,
        reply: &JoinReply,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let was_checked = std::mem::replace(&mut self.links_checked, true);
        // Somebody has trained already; only where nobody holds a state may all be new.
        if reply.source() == StateSource::Live || collective.world_size() < 2 {
            return Ok(());
        }
        let checked = Tensor::from_slice(&[i64::from(was_checked)]);
        // collective: all-reduce. Source and world size are the same on every rank: all come here or none.
        collective.all_reduce(&checked, ReduceOp::Max)?.wait()?;
        if checked.int64_value(&[0]) > 0 {
            return Ok(());
        }
        let Some(links) = links::measure(collective, self.device)? else { return Ok(()) };
        if collective.rank() == 0 {
            self.tell_links(generation, reply, &links);
        }
        Ok(())
    }

    fn tell_links(&self, generation: Generation, reply: &JoinReply, links: &Links) {
        let [slowest, median, fastest] = links.spread().map(|speed| speed / 1e9);
        tracing::info!(
            "health: {} links between neighbours: slowest {slowest:.3}, median {median:.3}, fastest \
             {fastest:.3} GB/s",
            reply.peers.len()
        );
        for (from, to, speed) in links.slow() {
            let place = |rank: usize| reply.peers.get(rank).map_or("?", String::as_str);
            let message = format!(
                "the link from ring rank {from} ({}) to {to} ({}) is slow: {:.3} GB/s, the median \
                 link has {median:.3}",
                place(from),
                place(to),
                speed / 1e9
            );
            tracing::warn!("health: {message}");
            self.history.note(generation, NoteKind::SlowLink, message);
        }
    }
}
