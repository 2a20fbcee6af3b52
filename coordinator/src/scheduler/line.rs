//! Who waits, for what, and what is done about it: the gangs that want slots with one accelerator
//! form a line, whose head others may not delay and for whom others may have to go.

use super::backfill::Backfill;
use super::preemption::victims;
use super::reason::{Hold, Holder, Reason};
use super::solve::{Line, Solver};
use super::{Gang, Standing, Stop};

impl<'a> Solver<'a> {
    /// Starts a gang behind a head if that delays the head in no case, with as many ranks as do not.
    pub(super) fn start_behind(&mut self, head: &'a Gang, gang: &'a Gang, needed: u32, most: u32) {
        let counted =
            self.lines.get_mut(gang.accelerator.as_str()).and_then(|line| line.backfill.take());
        let mut backfill = counted.unwrap_or_else(|| self.backfill(head, None));
        match backfill.largest(needed, most) {
            Some(ranks) => {
                backfill.start(ranks);
                self.take(gang, ranks);
            }
            None => match self.impossible(gang) {
                Some(reason) => self.wait(gang, reason),
                None => self.wait(gang, Reason::Behind { job_id: head.job_id.clone() }),
            },
        }
        self.lines.insert(&gang.accelerator, Line { head, backfill: Some(backfill) });
    }

    /// Lets a gang wait as the first of its line, and makes room for it if that takes preemption.
    pub(super) fn head(&mut self, gang: &'a Gang, needed: u32, free: u32) {
        let lack = needed - free;
        let strays = self.pool.strays(&gang.accelerator);
        let leaving = self.others(gang).filter(|other| self.leaves(other));
        let coming = strays + leaving.map(|other| self.frees(other, gang)).sum::<u32>();
        let candidates: Vec<(&Gang, u32)> = self
            .others(gang)
            .filter(|other| !self.leaves(other) && self.gives_way(other, gang))
            .map(|other| (other, self.frees(other, gang)))
            .collect();
        for victim in victims(&candidates, lack.saturating_sub(coming)) {
            let stop = Stop::MakesRoom { job_id: gang.job_id.clone() };
            self.stopped.insert(victim.job_id.clone(), stop);
        }
        let reason = Reason::Full {
            wanted: needed,
            more: gang.taken() > 0,
            accelerator: gang.accelerator.clone(),
            free,
            ending: strays,
            holders: self.holders(gang),
        };
        self.wait(gang, reason);
        self.lines.insert(&gang.accelerator, Line { head: gang, backfill: None });
    }

    /// Slots a gang with ranks may take, of `wanted` ones, without delaying the head of its line.
    pub(super) fn room(&self, gang: &Gang, wanted: u32) -> u32 {
        let most = wanted.min(self.pool.free_for(gang));
        let Some(line) = self.lines.get(gang.accelerator.as_str()) else { return most };
        // The gang itself gives back what it takes with what it has: whether it ends makes no
        // difference.
        self.backfill(line.head, Some(gang)).largest(1, most).unwrap_or(0)
    }

    /// Slots have changed hands although there is a line: what its head may see is another.
    pub(super) fn count_anew(&mut self, gang: &Gang) {
        if let Some(line) = self.lines.get_mut(gang.accelerator.as_str()) {
            line.backfill = None;
        }
    }

    /// Counts out which slots a head that waits may see become free while one gang stays.
    fn backfill(&self, head: &Gang, stays: Option<&Gang>) -> Backfill {
        let free = self.pool.free_for(head);
        let lack = self.missing(head).0.saturating_sub(free);
        let may_end = self
            .others(head)
            .filter(|other| stays.is_none_or(|stays| stays.job_id != other.job_id));
        let sizes = may_end.map(|other| {
            self.frees(other, head) + self.kept.get(other.job_id.as_str()).copied().unwrap_or(0)
        });
        let ending = std::iter::repeat_n(1, self.pool.strays(&head.accelerator) as usize);
        Backfill::new(lack, free, sizes.chain(ending))
    }

    /// Why no change among the jobs could ever make room for a gang, if so.
    pub(super) fn impossible(&self, gang: &Gang) -> Option<Reason> {
        let accelerator = gang.accelerator.clone();
        let Some((slots, closed)) = self.pool.slots(&accelerator) else {
            return Some(Reason::NoNode { accelerator });
        };
        let wanted = gang.min_ranks;
        if slots < wanted {
            return Some(Reason::TooLarge { wanted, slots, closed, accelerator });
        }
        let slots = slots - self.pool.slots_avoided(gang);
        let nodes = gang.avoids.clone();
        (slots < wanted).then_some(Reason::Avoided { wanted, slots, nodes, accelerator })
    }

    /// True when a gang may be stopped for another: it has lower priority; or it has lost so many
    /// ranks that it cannot run, and comes later in the order or has no hope of any.
    fn gives_way(&self, other: &Gang, to: &Gang) -> bool {
        let below = other.priority < to.priority;
        match other.standing {
            Standing::Training { .. } => below,
            Standing::Forming => {
                let cannot_run = self.missing(other).0 > 0;
                let hopeless = cannot_run && self.impossible(other).is_some();
                below || hopeless || (cannot_run && other.place() > to.place())
            }
            Standing::Queued | Standing::Held | Standing::Leaving => false,
        }
    }

    fn leaves(&self, gang: &Gang) -> bool {
        gang.standing == Standing::Leaving || self.stopped.contains_key(&gang.job_id)
    }

    /// Slots that another gang may have once one has gone.
    fn frees(&self, gang: &Gang, to: &Gang) -> u32 {
        self.pool.held_by(&self.seats[gang.job_id.as_str()], to)
    }

    /// The other gangs with the same accelerator.
    fn others<'b>(&self, gang: &'b Gang) -> impl Iterator<Item = &'a Gang> + use<'a, 'b> {
        let same = move |other: &&Gang| {
            other.accelerator == gang.accelerator && other.job_id != gang.job_id
        };
        self.problem.gangs.iter().filter(same)
    }

    fn holders(&self, gang: &Gang) -> Vec<Holder> {
        let mut holders = Vec::new();
        let mut add = |hold, other: &Gang, slots| {
            if slots > 0 {
                holders.push(Holder { hold, job_id: other.job_id.clone(), slots });
            }
        };
        for other in self.others(gang) {
            add(Hold::ForGrowth, other, self.kept.get(other.job_id.as_str()).copied().unwrap_or(0));
            let hold = if self.leaves(other) { Hold::UntilCheckpoint } else { Hold::Runs };
            add(hold, other, self.frees(other, gang));
        }
        let largest = |holder: &Holder| (holder.hold, std::cmp::Reverse(holder.slots));
        holders.sort_by(|a, b| largest(a).cmp(&largest(b)).then_with(|| a.job_id.cmp(&b.job_id)));
        holders
    }
}
