//! The slots of this node that take no rank: a process holds them that SIGKILL does not end, or their device
//! has failed.

use std::collections::BTreeMap;

use ringmaster_proto::v1::{SlotOut, SlotsOut};
use tokio::time::Instant;

use super::{Inner, Key, Table};
use crate::entry::Process;

/// What keeps slots out of service.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Ranks that SIGKILL does not end, until they have.
    undead: Vec<Holder>,
    /// Ranks that have ended and left processes that SIGKILL does not end, until those have.
    survived: Vec<Holder>,
    /// By slot: devices that failed, until a probe of the worker lists them again.
    faults: BTreeMap<u32, Fault>,
}

/// A process that holds, or whose children hold, a slot.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) key: Key,
    pub(super) pid: u32,
    pub(super) slot: u32,
    /// In a sentence.
    pub(super) why: String,
}

/// A device that failed.
#[derive(Debug)]
struct Fault {
    device: String,
    at: Instant,
    /// In a sentence.
    why: String,
}

impl Holder {
    fn is(&self, key: &Key, pid: u32) -> bool {
        self.pid == pid && self.key == *key
    }
}

impl Slots {
    /// Returns why this slot takes no rank; none when it does.
    pub(super) fn why_out(&self, slot: u32) -> Option<&str> {
        let mut held = self.undead.iter().chain(&self.survived);
        let held = held.find(|holder| holder.slot == slot).map(|holder| holder.why.as_str());
        held.or_else(|| self.faults.get(&slot).map(|fault| fault.why.as_str()))
    }

    /// Returns the slots that take no rank, each once.
    pub(super) fn out(&self) -> Vec<u32> {
        let held = self.undead.iter().chain(&self.survived).map(|holder| holder.slot);
        let mut out: Vec<u32> = held.chain(self.faults.keys().copied()).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    pub(super) fn bury(&mut self, holder: Holder) {
        self.undead.push(holder);
    }

    /// Returns this process if it is an undead one.
    pub(super) fn undead(&self, key: &Key, pid: u32) -> Option<&Holder> {
        self.undead.iter().find(|holder| holder.is(key, pid))
    }

    /// Gives back the slot of an undead process that has ended after all; none when it never was undead.
    pub(super) fn exhume(&mut self, key: &Key, pid: u32) -> Option<Holder> {
        let index = self.undead.iter().position(|holder| holder.is(key, pid))?;
        Some(self.undead.swap_remove(index))
    }

    /// Takes out the slot of a device that has failed just now.
    pub(super) fn fault(&mut self, slot: u32, device: &str, at: Instant, reason: &str) {
        let why = format!(
            "its device {device} failed ({reason}), and no probe of the worker has listed it since"
        );
        self.faults.insert(slot, Fault { device: device.to_owned(), at, why });
    }
}

impl Table {
    /// Returns the slots that take no rank, and why.
    pub fn slots_out(&self) -> SlotsOut {
        let inner = self.lock();
        let out = inner.slots_out.out().into_iter();
        let out = out.map(|slot| SlotOut {
            slot,
            reason: inner.slots_out.why_out(slot).unwrap_or_default().to_owned(),
        });
        SlotsOut { slots: out.collect() }
    }

    /// Takes the slot of this process out of service: processes that it left survive SIGKILL.
    /// [`Table::release`] gives it back.
    pub(crate) fn keep_out(&self, key: &Key, pid: u32, why: &str) {
        let mut inner = self.lock();
        let of_rank = inner.ranks.get(key).filter(|entry| entry.process == Process::Ended(pid));
        let slot = of_rank.map(|entry| entry.start.local_rank);
        let undead = || inner.slots_out.undead(key, pid).map(|holder| holder.slot);
        let Some(slot) = slot.or_else(undead) else { return };
        tracing::error!(job_id = %key.0, rank = key.1.0, pid, slot, why, "the slot takes no rank");
        let holder = Holder { key: key.clone(), pid, slot, why: why.to_owned() };
        inner.slots_out.survived.push(holder);
        self.news.notify_one();
    }

    /// Takes the slot out of service that a process holds which an earlier agent left and SIGKILL does not end.
    /// [`Table::release`] gives it back.
    pub(crate) fn keep_out_for(&self, key: &Key, pid: u32, slot: u32) {
        let why = format!(
            "process {pid}, which an earlier agent of this node left in slot {slot}, is still there after SIGKILL"
        );
        tracing::error!(job_id = %key.0, rank = key.1.0, pid, slot, "the slot takes no rank until what an earlier agent left has gone");
        let holder = Holder { key: key.clone(), pid, slot, why };
        self.lock().slots_out.survived.push(holder);
        self.news.notify_one();
    }

    /// Gives back the slot that [`Table::keep_out`] or [`Table::keep_out_for`] took.
    pub(crate) fn release(&self, key: &Key, pid: u32) {
        self.lock().slots_out.survived.retain(|holder| !holder.is(key, pid));
        tracing::info!(job_id = %key.0, rank = key.1.0, pid, "what the rank left has gone; its slot takes ranks again");
        self.news.notify_one();
    }

    /// Returns when a device failed last of those whose slots take no rank; none when all devices are well.
    pub(crate) fn newest_fault(&self) -> Option<Instant> {
        self.lock().slots_out.faults.values().map(|fault| fault.at).max()
    }

    /// Gives back the slots of these devices, which a probe listed that began at `at`, unless they failed
    /// after that.
    pub(crate) fn listed(&self, devices: &[String], at: Instant) {
        let mut inner = self.lock();
        let before = inner.slots_out.faults.len();
        inner.slots_out.faults.retain(|slot, fault| {
            let is_well = fault.at < at && devices.contains(&fault.device);
            if is_well {
                tracing::info!(slot, device = %fault.device, "the worker lists the device again; its slot takes ranks");
            }
            !is_well
        });
        if inner.slots_out.faults.len() != before {
            self.news.notify_one();
        }
    }
}

impl Inner {
    /// Returns how many slots are of no use: those that ranks have, and those that take none.
    pub(super) fn taken(&self) -> usize {
        let has_rank = |slot: u32| self.ranks.values().any(|entry| entry.start.local_rank == slot);
        let out = self.slots_out.out().into_iter();
        self.ranks.len() + out.filter(|slot| !has_rank(*slot)).count()
    }
}
