//! Every rank's rows carried past all ranks in blocks, and the sums that the ranks add up for them.
//!
//! As in ring attention (arXiv:2310.01889), with sums that follow the blocks: a *block* is up to
//! `sub_chunk` rows of one rank, its *owner*, with what belongs to them. Ranks stand in groups of
//! `group` (1: the flat ring). In one round every owner's block of the same rows goes round once, so
//! the memory in use is a fixed number of blocks for any world size and batch. At hop h of a round
//! the group g holds the blocks of group (g − h) mod G, each member that of its counterpart:
//!
//! 1. the member sends its block on to its counterpart in the next group (in flight meanwhile),
//! 2. works on its block, then on those of the other members, which rotate inside the group,
//! 3. returns to each member the part of the sum that belongs to that member's block,
//! 4. sends the sum on, to which the groups before have added; it follows one hop behind the block
//!    and is needed only when there is something to add to it.
//!
//! After G hops every sum is back at its block's owner. A flat ring of W ranks pays W latencies a
//! round; G groups pay G between the groups, where links are slow, and the rest inside them. The
//! order of additions depends on the counts, the group and the sub-chunk only.
//!
//! Ranks cannot wait for one another in a circle: all start the same exchanges in the same order,
//! whatever their rows, and an exchange sends while it receives.

use std::ops::Range;

use tch::Tensor;

use super::pool::{Chunk, Pool};
use super::{Error, tile};
use crate::collective::{Collective, Pending};

/// What a rank computes with the blocks that come past.
pub(super) trait BlockWork {
    /// Returns rows of this rank's own: tensors whose dimension 0 is rows.
    fn block(&self, rows: Range<usize>) -> Vec<Tensor>;

    /// Works on rows `rows` of `owner` and returns `sum` with this rank's part added.
    ///
    /// The sooner it asks for [`Sum::ready`], the less of the transfer is hidden.
    fn compute(
        &mut self,
        block: &[Tensor],
        owner: usize,
        rows: Range<usize>,
        sum: Sum<'_>,
    ) -> Result<Chunk, Error>;

    /// Adds another rank's part to `sum`.
    fn combine(&self, sum: &mut Tensor, part: &Tensor) -> Result<(), Error>;
}

/// What other ranks have added up for the rows of a block, perhaps still on its way, and what this rank
/// adds.
pub(super) enum Sum<'p> {
    /// Nothing yet: memory that is not initialised.
    Empty(Chunk),
    /// A transfer that brings it.
    InFlight(Transfer, &'p mut Pool),
    /// It is here, and this rank has added to it.
    Arrived(Chunk),
}

impl Sum<'_> {
    /// Waits for it; true if nobody has added anything.
    pub(super) fn ready(self) -> Result<(Chunk, bool), Error> {
        match self {
            Self::Empty(chunk) => Ok((chunk, true)),
            Self::InFlight(transfer, pool) => Ok((transfer.wait(pool)?, false)),
            Self::Arrived(chunk) => Ok((chunk, false)),
        }
    }

    /// Adds W Y; only the first call waits for the sum of the ranks before this one. Shapes: `[n, m]`,
    /// `[m, d]` → `[n, d]`.
    pub(super) fn add(self, weights: &Tensor, rows: &Tensor) -> Result<Self, Error> {
        let (mut sum, empty) = self.ready()?;
        tile::multiply_into(sum.first_mut(), weights, rows, empty)?;
        Ok(Self::Arrived(sum))
    }

    /// Waits for it; zeros if nobody has added anything.
    pub(super) fn finish(self) -> Result<Chunk, Error> {
        let (mut sum, empty) = self.ready()?;
        if empty {
            let _ = sum.first_mut().f_zero_()?;
        }
        Ok(sum)
    }
}

/// The order in which blocks pass the ranks.
pub(super) struct Ring<'a> {
    collective: &'a dyn Collective,
    /// Rows every rank sends round, by rank.
    counts: &'a [usize],
    /// Ranks that stand together; divides the world size.
    group: usize,
    sub_chunk: usize,
}

/// Memory for what travels: blocks, and their sums behind them.
pub(super) struct Pools {
    blocks: Pool,
    sums: Pool,
}

impl<'a> Ring<'a> {
    pub(super) fn new(
        collective: &'a dyn Collective,
        counts: &'a [usize],
        group: usize,
        sub_chunk: usize,
    ) -> Result<Self, Error> {
        let world_size = collective.world_size();
        if group == 0 || !world_size.is_multiple_of(group) {
            let what = format!("groups of {group} ranks do not divide {world_size} ranks");
            return Err(Error::Unsupported { what });
        }
        Ok(Self { collective, counts, group, sub_chunk: sub_chunk.max(1) })
    }

    /// Memory for passes whose blocks and sums are like these tensors. As much as any ring needs,
    /// so that it is the same for any number of ranks.
    pub(super) fn pools(&self, block: &[Tensor], sums: &Tensor) -> Result<Pools, Error> {
        let rows = self.sub_chunk.min(self.most());
        let mut pools = Pools {
            blocks: Pool::like(block, rows),
            sums: Pool::like(std::slice::from_ref(sums), rows),
        };
        if self.collective.world_size() > 1 {
            pools.blocks.fill(2)?;
            pools.sums.fill(2)?;
        }
        Ok(pools)
    }

    /// The memory of a pass that is over, for one whose blocks have one more tensor and whose sums
    /// are others.
    pub(super) fn pools_after(
        &self,
        mut pools: Pools,
        more: &Tensor,
        sums: &Tensor,
    ) -> Result<Pools, Error> {
        pools.blocks.add(more)?;
        let rows = self.sub_chunk.min(self.most());
        pools.sums = Pool::like(std::slice::from_ref(sums), rows);
        if self.collective.world_size() > 1 {
            pools.sums.fill(2)?;
        }
        Ok(pools)
    }

    /// Rows of the rank that has most.
    fn most(&self) -> usize {
        self.counts.iter().copied().max().unwrap_or(0)
    }

    /// Sends all rows of all ranks round once; `out` receives the sums of this rank's rows. Shape
    /// `[counts[rank], …]`.
    pub(super) fn pass(
        &self,
        work: &mut impl BlockWork,
        out: &Tensor,
        pools: &mut Pools,
    ) -> Result<(), Error> {
        let mut pass = Pass { ring: self, work, pools };
        let mut returning = None;
        // Every rank walks the same sub-chunk starts, so that the exchanges pair up even when some
        // ranks hold fewer rows (their later blocks are empty).
        for rows in tile::ranges(self.most(), self.sub_chunk) {
            returning = pass.round(rows.start, out, returning)?;
        }
        finish(returning, &mut pass.pools.sums)
    }

    /// Starts to fetch the block of the member `distance` behind, if the group has one.
    fn fetch_from_member(
        &self,
        block: &Chunk,
        hop: &Hop<'_>,
        distance: usize,
        pool: &mut Pool,
    ) -> Result<Option<Transfer>, Error> {
        if distance >= self.group {
            return Ok(None);
        }
        let fetched = pool.take(hop.rows_of(-(distance as isize)).len())?;
        // collective: exchange inside the group. All its members rotate by the same distance.
        self.exchange(block.lend(), fetched, (0, distance as isize)).map(Some)
    }

    /// Sends a block, or a sum after the block it belongs to, to this rank's counterpart in the next
    /// group, and receives that of the group before.
    fn send_on(&self, chunk: Chunk, into: Chunk) -> Result<Transfer, Error> {
        // collective: exchange between groups. Every rank sends one group ahead at once.
        self.exchange(chunk, into, (1, 0))
    }

    /// Sends to the rank (groups, members) ahead and receives from the one as far behind. Returns at
    /// once: [`Transfer::wait`] waits.
    fn exchange(
        &self,
        sent: Chunk,
        into: Chunk,
        (groups, members): (isize, isize),
    ) -> Result<Transfer, Error> {
        let (to, from) = (self.ahead(groups, members), self.ahead(-groups, -members));
        let mut pending = Vec::with_capacity(into.tensors().len());
        // One exchange per tensor of the block; blocks of all ranks have the same tensors.
        for (send, into) in sent.tensors().iter().zip(into.tensors()) {
            pending.push(self.collective.exchange(send, to, into, from)?);
        }
        Ok(Transfer { sent, received: into, pending })
    }

    /// The rank `groups` groups and `members` members ahead of this one, both round their circles.
    fn ahead(&self, groups: isize, members: isize) -> usize {
        let rank = self.collective.rank();
        let count = (self.collective.world_size() / self.group) as isize;
        let group = ((rank / self.group) as isize + groups).rem_euclid(count) as usize;
        let member =
            ((rank % self.group) as isize + members).rem_euclid(self.group as isize) as usize;
        group * self.group + member
    }

    /// The rows of `owner` in the sub-chunk that begins at `start`; none when it holds fewer.
    fn rows(&self, owner: usize, start: usize) -> Range<usize> {
        let end = self.counts[owner].min(start + self.sub_chunk);
        start.min(end)..end
    }
}

/// All rows on their way round the ring once.
struct Pass<'p, 'r, W> {
    ring: &'r Ring<'r>,
    work: &'p mut W,
    pools: &'p mut Pools,
}

impl<W: BlockWork> Pass<'_, '_, W> {
    /// Sends the block of every rank that begins at row `start` round once. Returns the last transfer,
    /// still in flight, which brings the sum of this rank's block to `out`.
    fn round(
        &mut self,
        start: usize,
        out: &Tensor,
        mut previous_round: Option<Transfer>,
    ) -> Result<Option<Transfer>, Error> {
        let ring = self.ring;
        let groups = ring.collective.world_size() / ring.group;
        let own_rows = ring.rows(ring.collective.rank(), start);
        let out = Chunk::lent(vec![narrow(out, &own_rows)]);
        let mut block = Chunk::lent(self.work.block(own_rows));
        let mut sum_behind: Option<Transfer> = None;
        for index in 0..groups {
            let hop = Hop { ring, index, start };
            let last = index + 1 == groups;
            // The next block is asked for before this one is worked on, which hides its transfer.
            let next_block = if last {
                None
            } else {
                Some(ring.send_on(block.lend(), self.pools.blocks.take(hop.next_rows())?)?)
            };
            let sum = match sum_behind.take() {
                Some(transfer) => Sum::InFlight(transfer, &mut self.pools.sums),
                // Alone, or in one group, sums do not travel: they are made where they belong.
                None if groups == 1 => Sum::Empty(out.lend()),
                None => Sum::Empty(self.pools.sums.take(hop.rows_of(0).len())?),
            };
            let fetching = ring.fetch_from_member(&block, &hop, 1, &mut self.pools.blocks)?;
            // `compute` waits for the sum of the groups before; SigLIP does so after its first tile.
            let mut sum = self.work.compute(block.tensors(), hop.owner(0), hop.rows_of(0), sum)?;
            // The last sum of the round before is waited for only here: the work above hides its way.
            finish(previous_round.take(), &mut self.pools.sums)?;
            self.members(&block, &hop, fetching, &mut sum)?;
            if groups > 1 {
                // The last hop leads to the owner: its sum is received where it belongs.
                let into = if last { out.lend() } else { self.pools.sums.take(hop.next_rows())? };
                sum_behind = Some(ring.send_on(sum, into)?);
            }
            if let Some(next) = next_block {
                let next = next.wait(&mut self.pools.blocks)?;
                self.pools.blocks.give(std::mem::replace(&mut block, next));
            }
        }
        self.pools.blocks.give(block);
        Ok(sum_behind)
    }

    /// Works on the blocks that the other members of this rank's group hold, and adds to `sum` what
    /// they made of this member's `block`. `fetching` brings the first of them.
    fn members(
        &mut self,
        block: &Chunk,
        hop: &Hop<'_>,
        mut fetching: Option<Transfer>,
        sum: &mut Chunk,
    ) -> Result<(), Error> {
        let ring = self.ring;
        let mut returning: Option<Transfer> = None;
        for distance in 1..ring.group {
            let member = -(distance as isize);
            let Some(fetched) = fetching.take() else { break };
            let theirs = fetched.wait(&mut self.pools.blocks)?;
            fetching = ring.fetch_from_member(block, hop, distance + 1, &mut self.pools.blocks)?;
            let rows = hop.rows_of(member);
            let part = Sum::Empty(self.pools.sums.take(rows.len())?);
            let part = self.work.compute(theirs.tensors(), hop.owner(member), rows, part)?;
            self.pools.blocks.give(theirs);
            // Parts are added in the order of distance on every run, whichever arrives first.
            self.combine(sum, returning.take())?;
            let into = self.pools.sums.take(hop.rows_of(0).len())?;
            // collective: exchange inside the group, back the way the block came: each member gets
            // its part from the member that has just worked on its block.
            returning = Some(ring.exchange(part, into, (0, member))?);
        }
        self.combine(sum, returning)
    }

    /// Waits for another member's part of the sum, if one is on its way, and adds it.
    fn combine(&mut self, sum: &mut Chunk, returning: Option<Transfer>) -> Result<(), Error> {
        let Some(returning) = returning else { return Ok(()) };
        let part = returning.wait(&mut self.pools.sums)?;
        self.work.combine(sum.first_mut(), part.first())?;
        self.pools.sums.give(part);
        Ok(())
    }
}

/// A hop of a round: whose blocks this rank's group holds.
struct Hop<'r> {
    ring: &'r Ring<'r>,
    /// From 0.
    index: usize,
    /// First row of the blocks.
    start: usize,
}

impl Hop<'_> {
    /// Owner of the block that the member `members` ahead of this one holds.
    fn owner(&self, members: isize) -> usize {
        self.ring.ahead(-(self.index as isize), members)
    }

    fn rows_of(&self, members: isize) -> Range<usize> {
        self.ring.rows(self.owner(members), self.start)
    }

    /// How many rows the block has that comes next.
    fn next_rows(&self) -> usize {
        self.ring.rows(self.ring.ahead(-(self.index as isize) - 1, 0), self.start).len()
    }
}

/// An exchange in flight.
pub(super) struct Transfer {
    sent: Chunk,
    received: Chunk,
    pending: Vec<Pending>,
}

impl Transfer {
    /// Waits for the rank behind; what was sent is free again, in `pool`.
    fn wait(self, pool: &mut Pool) -> Result<Chunk, Error> {
        for pending in self.pending {
            pending.wait()?;
        }
        pool.give(self.sent);
        Ok(self.received)
    }
}

fn finish(transfer: Option<Transfer>, pool: &mut Pool) -> Result<(), Error> {
    if let Some(transfer) = transfer {
        let received = transfer.wait(pool)?;
        pool.give(received);
    }
    Ok(())
}

/// Rows of a tensor, a view of them.
pub(super) fn narrow(tensor: &Tensor, rows: &Range<usize>) -> Tensor {
    tensor.narrow(0, rows.start as i64, rows.len() as i64)
}
