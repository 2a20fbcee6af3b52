//! Carrying every rank's rows past all ranks, and what each rank adds to them back home.
//!
//! Ranks stand in groups of `group` (1: the flat ring). Rows move in sub-chunks, so the memory in
//! use is a fixed number of sub-chunks for any world size and batch. At hop h of a lap the group g
//! holds the sub-chunks of group (g − h) mod G, each member the slice of its counterpart:
//!
//! 1. the member passes its slice on to its counterpart in the next group (in flight meanwhile),
//! 2. works on its slice, then on those of the other members, which rotate inside the group,
//! 3. returns to each member the part of the result that belongs to that member's slice,
//! 4. adds the result that arrived from the group before and passes the sum on, one hop behind.
//!
//! After G hops every result is home. A flat ring of W ranks pays W latencies a lap; G groups pay
//! G between the groups, where links are slow, and the rest inside them. The order of additions
//! depends on the counts, the group and the sub-chunk only.

use std::ops::Range;

use tch::Tensor;

use super::{Error, tile};
use crate::collective::{Collective, Pending};

/// What a rank does with the rows that come past.
pub(super) trait Visit {
    /// Returns rows of this rank's own cargo: tensors whose dimension 0 is rows.
    fn cargo(&self, rows: Range<usize>) -> Vec<Tensor>;

    /// Writes this rank's part of the result for `rows` of `owner`'s cargo into `part`, all of it.
    fn visit(
        &mut self,
        cargo: &[Tensor],
        owner: usize,
        rows: Range<usize>,
        part: &mut Tensor,
    ) -> Result<(), Error>;

    /// Adds another rank's part to `sum`.
    fn join(&self, sum: &mut Tensor, part: &Tensor) -> Result<(), Error>;
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

    /// Sends all rows round once; `home` receives this rank's results. Shape `[counts[rank], …]`.
    pub(super) fn turn(&self, visitor: &mut impl Visit, home: &Tensor) -> Result<(), Error> {
        let most = self.counts.iter().copied().max().unwrap_or(0);
        let mut coming_home = None;
        // Every rank walks the same sub-chunk starts, so that the exchanges pair up even when some
        // ranks hold fewer rows (their later sub-chunks are empty).
        for rows in tile::ranges(most, self.sub_chunk) {
            coming_home = self.lap(rows.start, visitor, home, coming_home)?;
        }
        wait(coming_home).map(drop)
    }

    /// One sub-chunk of every rank once round. Returns the last exchange, still in flight, which
    /// brings this rank's result home.
    fn lap(
        &self,
        start: usize,
        visitor: &mut impl Visit,
        home: &Tensor,
        mut previous_lap: Option<Arrival>,
    ) -> Result<Option<Arrival>, Error> {
        let groups = self.collective.world_size() / self.group;
        let rank = self.collective.rank();
        let own_rows = self.rows(rank, start);
        let home = narrow(home, &own_rows);
        let mut slice = visitor.cargo(own_rows);
        let mut arriving: Option<Arrival> = None;
        for hop in 0..groups {
            let at = |member| self.ahead(-(hop as isize), member);
            let own = at(0);
            let before = self.ahead(-(hop as isize) - 1, 0);
            let last = hop + 1 == groups;
            let next_slice = match last {
                true => None,
                false => Some(self.pass(&slice, 1, &self.like(&slice, before, start)?)?),
            };
            // Alone, or in one group, results need not travel: they are written where they belong.
            let mut sum = match groups {
                1 => home.shallow_clone(),
                _ => self.like(std::slice::from_ref(&home), own, start)?.swap_remove(0),
            };
            self.visit_group(visitor, &slice, &at, start, &mut sum)?;
            wait(previous_lap.take())?;
            if let Some(arrived) = wait(arriving.take())? {
                visitor.join(&mut sum, &arrived[0])?;
            }
            if groups > 1 {
                let into = match last {
                    true => vec![home.shallow_clone()],
                    false => self.like(std::slice::from_ref(&home), before, start)?,
                };
                arriving = Some(self.pass(&[sum], 1, &into)?);
            }
            if let Some(next) = wait(next_slice)? {
                slice = next;
            }
        }
        Ok(arriving)
    }

    /// Works on the sub-chunks that the members of this rank's group hold; `sum` becomes the
    /// group's result for this member's own `slice`.
    fn visit_group(
        &self,
        visitor: &mut impl Visit,
        slice: &[Tensor],
        at: &dyn Fn(isize) -> usize,
        start: usize,
        sum: &mut Tensor,
    ) -> Result<(), Error> {
        let rotate = |distance: usize| {
            let guest = self.like(slice, at(-(distance as isize)), start)?;
            self.rotate(slice, distance as isize, &guest)
        };
        let mut next_guest = if self.group > 1 { Some(rotate(1)?) } else { None };
        visitor.visit(slice, at(0), self.rows(at(0), start), sum)?;
        let mut returning: Option<Arrival> = None;
        for distance in 1..self.group {
            let owner = at(-(distance as isize));
            let guest = wait(next_guest.take())?.unwrap_or_default();
            if distance + 1 < self.group {
                next_guest = Some(rotate(distance + 1)?);
            }
            let template = std::slice::from_ref(&*sum);
            let mut part = self.like(template, owner, start)?.swap_remove(0);
            visitor.visit(&guest, owner, self.rows(owner, start), &mut part)?;
            if let Some(returned) = wait(returning.take())? {
                visitor.join(sum, &returned[0])?;
            }
            let into = vec![sum.f_empty_like()?];
            returning = Some(self.rotate(&[part], -(distance as isize), &into)?);
        }
        if let Some(returned) = wait(returning)? {
            visitor.join(sum, &returned[0])?;
        }
        Ok(())
    }

    /// Sends to this rank's counterpart `groups` groups ahead and receives from the one behind.
    fn pass(&self, send: &[Tensor], groups: isize, into: &[Tensor]) -> Result<Arrival, Error> {
        self.exchange(send, self.ahead(groups, 0), into, self.ahead(-groups, 0))
    }

    /// Sends to the member `members` places ahead in the group and receives from the one behind.
    fn rotate(&self, send: &[Tensor], members: isize, into: &[Tensor]) -> Result<Arrival, Error> {
        self.exchange(send, self.ahead(0, members), into, self.ahead(0, -members))
    }

    fn exchange(
        &self,
        send: &[Tensor],
        to: usize,
        into: &[Tensor],
        from: usize,
    ) -> Result<Arrival, Error> {
        let mut pending = Vec::with_capacity(send.len());
        for (send, into) in send.iter().zip(into) {
            pending.push(self.collective.exchange(send, to, into, from)?);
        }
        let tensors = into.iter().map(Tensor::shallow_clone).collect();
        Ok(Arrival { tensors, pending })
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

    /// Uninitialised tensors shaped as `tensors`, with as many rows as `owner` has.
    fn like(
        &self,
        tensors: &[Tensor],
        owner: usize,
        start: usize,
    ) -> Result<Vec<Tensor>, tch::TchError> {
        let rows = self.rows(owner, start).len() as i64;
        let like = |t: &Tensor| {
            let mut shape = t.size();
            shape[0] = rows;
            Tensor::f_empty(shape.as_slice(), (t.kind(), t.device()))
        };
        tensors.iter().map(like).collect()
    }
}

/// Tensors that an exchange fills.
struct Arrival {
    tensors: Vec<Tensor>,
    pending: Vec<Pending>,
}

fn wait(arrival: Option<Arrival>) -> Result<Option<Vec<Tensor>>, Error> {
    let Some(Arrival { tensors, pending }) = arrival else { return Ok(None) };
    for pending in pending {
        pending.wait()?;
    }
    Ok(Some(tensors))
}

/// Rows of a tensor, a view of them.
pub(super) fn narrow(tensor: &Tensor, rows: &Range<usize>) -> Tensor {
    tensor.narrow(0, rows.start as i64, rows.len() as i64)
}
