//! Carrying every rank's rows past all ranks, and what each rank adds to them back home.
//!
//! Ranks stand in groups of `group` (1: the flat ring). Rows move in sub-chunks, so the memory in
//! use is a fixed number of sub-chunks for any world size and batch. At hop h of a lap the group g
//! holds the sub-chunks of group (g − h) mod G, each member the slice of its counterpart:
//!
//! 1. the member passes its slice on to its counterpart in the next group (in flight meanwhile),
//! 2. works on its slice, then on those of the other members, which rotate inside the group,
//! 3. returns to each member the part of the result that belongs to that member's slice,
//! 4. passes the result on, to which the groups before have added; it follows one hop behind and
//!    is needed only when there is something to add to it.
//!
//! After G hops every result is home. A flat ring of W ranks pays W latencies a lap; G groups pay
//! G between the groups, where links are slow, and the rest inside them. The order of additions
//! depends on the counts, the group and the sub-chunk only.

use std::ops::Range;

use tch::Tensor;

use super::pool::{Chunk, Pool};
use super::{Error, tile};
use crate::collective::{Collective, Pending};

/// What a rank does with the rows that come past.
pub(super) trait Visit {
    /// Returns rows of this rank's own cargo: tensors whose dimension 0 is rows.
    fn cargo(&self, rows: Range<usize>) -> Vec<Tensor>;

    /// Works on rows `rows` of `owner`'s cargo and returns `result` with this rank's part added.
    ///
    /// The sooner it asks for [`Sum::ready`], the less of the transfer is hidden.
    fn visit(
        &mut self,
        cargo: &[Tensor],
        owner: usize,
        rows: Range<usize>,
        result: Sum<'_>,
    ) -> Result<Chunk, Error>;

    /// Adds another rank's part to `sum`.
    fn join(&self, sum: &mut Tensor, part: &Tensor) -> Result<(), Error>;
}

/// What other ranks have added to the result for some rows, perhaps still on its way, and what this rank
/// adds.
pub(super) enum Sum<'p> {
    /// Nothing yet: memory that is not initialised.
    Nothing(Chunk),
    /// An exchange that brings it.
    Coming(Arrival, &'p mut Pool),
    /// It is here, and this rank has added to it.
    Here(Chunk),
}

impl Sum<'_> {
    /// Waits for it; true if nobody has added anything.
    pub(super) fn ready(self) -> Result<(Chunk, bool), Error> {
        match self {
            Self::Nothing(chunk) => Ok((chunk, true)),
            Self::Coming(arrival, pool) => Ok((arrival.wait(pool)?, false)),
            Self::Here(chunk) => Ok((chunk, false)),
        }
    }

    /// Adds W Y; only the first call waits for the sum of the ranks before this one. Shapes: `[n, m]`,
    /// `[m, d]` → `[n, d]`.
    pub(super) fn add(self, weights: &Tensor, rows: &Tensor) -> Result<Self, Error> {
        let (mut sum, nothing) = self.ready()?;
        tile::multiply_into(sum.first_mut(), weights, rows, nothing)?;
        Ok(Self::Here(sum))
    }

    /// Waits for it; zeros if nobody has added anything.
    pub(super) fn finish(self) -> Result<Chunk, Error> {
        let (mut sum, nothing) = self.ready()?;
        if nothing {
            let _ = sum.first_mut().f_zero_()?;
        }
        Ok(sum)
    }
}

/// The order in which rows pass the ranks.
pub(super) struct Ring<'a> {
    collective: &'a dyn Collective,
    /// Rows every rank sends round, by rank.
    counts: &'a [usize],
    /// Ranks that stand together; divides the world size.
    group: usize,
    sub_chunk: usize,
}

/// Memory for what travels: cargo one way, results behind it.
pub(super) struct Pools {
    cargo: Pool,
    results: Pool,
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

    /// Memory for turns whose cargo and results are like these tensors. As much as any ring needs,
    /// so that it is the same for any number of ranks.
    pub(super) fn pools(&self, cargo: &[Tensor], results: &Tensor) -> Result<Pools, Error> {
        let rows = self.sub_chunk.min(self.most());
        let mut pools = Pools {
            cargo: Pool::like(cargo, rows),
            results: Pool::like(std::slice::from_ref(results), rows),
        };
        if self.collective.world_size() > 1 {
            pools.cargo.fill(2)?;
            pools.results.fill(2)?;
        }
        Ok(pools)
    }

    /// The memory of a turn that is over, for one whose cargo has one more tensor and whose results
    /// are others.
    pub(super) fn pools_after(
        &self,
        mut pools: Pools,
        more_cargo: &Tensor,
        results: &Tensor,
    ) -> Result<Pools, Error> {
        pools.cargo.add(more_cargo)?;
        let rows = self.sub_chunk.min(self.most());
        pools.results = Pool::like(std::slice::from_ref(results), rows);
        if self.collective.world_size() > 1 {
            pools.results.fill(2)?;
        }
        Ok(pools)
    }

    /// Rows of the rank that has most.
    fn most(&self) -> usize {
        self.counts.iter().copied().max().unwrap_or(0)
    }

    /// Sends all rows round once; `home` receives this rank's results. Shape `[counts[rank], …]`.
    pub(super) fn turn(
        &self,
        visitor: &mut impl Visit,
        home: &Tensor,
        pools: &mut Pools,
    ) -> Result<(), Error> {
        let mut coming_home = None;
        // Every rank walks the same sub-chunk starts, so that the exchanges pair up even when some
        // ranks hold fewer rows (their later sub-chunks are empty).
        for rows in tile::ranges(self.most(), self.sub_chunk) {
            coming_home = self.lap(rows.start, visitor, home, coming_home, pools)?;
        }
        finish(coming_home, &mut pools.results)
    }

    /// One sub-chunk of every rank once round. Returns the last exchange, still in flight, which
    /// brings this rank's result home.
    fn lap(
        &self,
        start: usize,
        visitor: &mut impl Visit,
        home: &Tensor,
        mut previous_lap: Option<Arrival>,
        pools: &mut Pools,
    ) -> Result<Option<Arrival>, Error> {
        let groups = self.collective.world_size() / self.group;
        let own_rows = self.rows(self.collective.rank(), start);
        let home = Chunk::lent(vec![narrow(home, &own_rows)]);
        let mut slice = Chunk::lent(visitor.cargo(own_rows));
        let mut arriving: Option<Arrival> = None;
        for hop in 0..groups {
            let at = At { ring: self, hop, start };
            let last = hop + 1 == groups;
            let next_slice = if last {
                None
            } else {
                Some(self.pass(&slice, pools.cargo.take(at.rows_before())?)?)
            };
            let sum = match arriving.take() {
                Some(arriving) => Sum::Coming(arriving, &mut pools.results),
                // Alone, or in one group, results do not travel: they are made where they belong.
                None if groups == 1 => Sum::Nothing(home.again()),
                None => Sum::Nothing(pools.results.take(at.rows_of(0).len())?),
            };
            let mut first_guest = self.rotate_guest(&slice, &at, 1, &mut pools.cargo)?;
            let mut sum = visitor.visit(slice.tensors(), at.owner(0), at.rows_of(0), sum)?;
            finish(previous_lap.take(), &mut pools.results)?;
            self.visit_others(visitor, &slice, &at, &mut first_guest, &mut sum, pools)?;
            if groups > 1 {
                let into =
                    if last { home.again() } else { pools.results.take(at.rows_before())? };
                arriving = Some(self.send_on(sum, into)?);
            }
            if let Some(next) = next_slice {
                let next = next.wait(&mut pools.cargo)?;
                pools.cargo.give(std::mem::replace(&mut slice, next));
            }
        }
        pools.cargo.give(slice);
        Ok(arriving)
    }

    /// Works on the sub-chunks that the other members of this rank's group hold, and adds to `sum`
    /// what they made of this member's `slice`.
    fn visit_others(
        &self,
        visitor: &mut impl Visit,
        slice: &Chunk,
        at: &At<'_>,
        next_guest: &mut Option<Arrival>,
        sum: &mut Chunk,
        pools: &mut Pools,
    ) -> Result<(), Error> {
        let mut returning: Option<Arrival> = None;
        for distance in 1..self.group {
            let member = -(distance as isize);
            let Some(arrival) = next_guest.take() else { break };
            let guest = arrival.wait(&mut pools.cargo)?;
            *next_guest = self.rotate_guest(slice, at, distance + 1, &mut pools.cargo)?;
            let rows = at.rows_of(member);
            let part = Sum::Nothing(pools.results.take(rows.len())?);
            let part = visitor.visit(guest.tensors(), at.owner(member), rows, part)?;
            pools.cargo.give(guest);
            self.join(visitor, sum, returning.take(), pools)?;
            let into = pools.results.take(at.rows_of(0).len())?;
            returning = Some(self.exchange(part, into, (0, member))?);
        }
        self.join(visitor, sum, returning, pools)
    }

    fn join(
        &self,
        visitor: &impl Visit,
        sum: &mut Chunk,
        returning: Option<Arrival>,
        pools: &mut Pools,
    ) -> Result<(), Error> {
        let Some(returning) = returning else { return Ok(()) };
        let part = returning.wait(&mut pools.results)?;
        visitor.join(sum.first_mut(), part.first())?;
        pools.results.give(part);
        Ok(())
    }

    /// Starts to fetch the slice of the member `distance` behind, if the group has one.
    fn rotate_guest(
        &self,
        slice: &Chunk,
        at: &At<'_>,
        distance: usize,
        pool: &mut Pool,
    ) -> Result<Option<Arrival>, Error> {
        if distance >= self.group {
            return Ok(None);
        }
        let guest = pool.take(at.rows_of(-(distance as isize)).len())?;
        self.exchange(slice.again(), guest, (0, distance as isize)).map(Some)
    }

    /// Sends the slice to this rank's counterpart in the next group; it is kept, to be worked on.
    fn pass(&self, slice: &Chunk, into: Chunk) -> Result<Arrival, Error> {
        self.exchange(slice.again(), into, (1, 0))
    }

    /// Sends a result after the slice it belongs to.
    fn send_on(&self, sum: Chunk, into: Chunk) -> Result<Arrival, Error> {
        self.exchange(sum, into, (1, 0))
    }

    /// Sends to the rank (groups, members) ahead and receives from the one as far behind.
    fn exchange(
        &self,
        sent: Chunk,
        into: Chunk,
        (groups, members): (isize, isize),
    ) -> Result<Arrival, Error> {
        let (to, from) = (self.ahead(groups, members), self.ahead(-groups, -members));
        let mut pending = Vec::with_capacity(into.tensors().len());
        for (send, into) in sent.tensors().iter().zip(into.tensors()) {
            pending.push(self.collective.exchange(send, to, into, from)?);
        }
        Ok(Arrival { sent, received: into, pending })
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

/// A hop of a lap: whose sub-chunks this rank's group holds.
struct At<'a> {
    ring: &'a Ring<'a>,
    hop: usize,
    start: usize,
}

impl At<'_> {
    /// Owner of the slice that the member `members` ahead of this one holds.
    fn owner(&self, members: isize) -> usize {
        self.ring.ahead(-(self.hop as isize), members)
    }

    fn rows_of(&self, members: isize) -> Range<usize> {
        self.ring.rows(self.owner(members), self.start)
    }

    /// How many rows the slice has that comes next.
    fn rows_before(&self) -> usize {
        self.ring.rows(self.ring.ahead(-(self.hop as isize) - 1, 0), self.start).len()
    }
}

/// An exchange in flight.
pub(super) struct Arrival {
    sent: Chunk,
    received: Chunk,
    pending: Vec<Pending>,
}

impl Arrival {
    /// Waits; what was sent is free again, in `pool`.
    fn wait(self, pool: &mut Pool) -> Result<Chunk, Error> {
        for pending in self.pending {
            pending.wait()?;
        }
        pool.give(self.sent);
        Ok(self.received)
    }
}

fn finish(arrival: Option<Arrival>, pool: &mut Pool) -> Result<(), Error> {
    if let Some(arrival) = arrival {
        let arrived = arrival.wait(pool)?;
        pool.give(arrived);
    }
    Ok(())
}

/// Rows of a tensor, a view of them.
pub(super) fn narrow(tensor: &Tensor, rows: &Range<usize>) -> Tensor {
    tensor.narrow(0, rows.start as i64, rows.len() as i64)
}
