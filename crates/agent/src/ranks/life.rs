//! The life of a process in the table.
//!
//! `start` puts an entry in; `launch` runs exec under the lock, so that no process can appear after
//! `kill_all`; `ending` says that the leader is a zombie and must not be signalled any more; `ended` removes
//! it, when nothing of the rank is left, and either keeps its exit for the coordinator or starts the rank's
//! next life.
//!
//! A process is named by its key and its number: one that SIGKILL does not end may be there beside the next
//! of its key.

use std::sync::Arc;

use ringmaster_proto::v1::StartRank;
use tokio::time::Instant;

use super::{Inner, Key, Table};
use crate::entry::{Ending, Entry, Killed, Launch, NotStarted, Process};
use crate::exit::{cause, operation};
use crate::secret::Secret;

impl Table {
    /// Runs `exec` for a queued rank and notes the process id it returns; what else it returns is handed on.
    /// Returns none when nothing was started: the rank is no longer wanted, or `exec` failed, and then the
    /// entry is gone and its exit kept for the coordinator.
    pub fn launch<P>(
        &self,
        key: &Key,
        exec: impl FnOnce(&StartRank, &Secret) -> Result<(u32, P), NotStarted>,
    ) -> Option<(P, Launch)> {
        self.launch_prepared(key, |_| Ok(()), |start, secret, ()| exec(start, secret))
    }

    /// As [`Table::launch`]; `prepare`, which may take as long as a file system takes, runs before without the
    /// lock, and again if the coordinator wants another start by then.
    pub(crate) fn launch_prepared<F, P>(
        &self,
        key: &Key,
        prepare: impl Fn(&StartRank) -> Result<F, NotStarted>,
        exec: impl FnOnce(&StartRank, &Secret, F) -> Result<(u32, P), NotStarted>,
    ) -> Option<(P, Launch)> {
        let (mut inner, prepared) = loop {
            let start = self.queued(&mut self.lock(), key)?;
            let prepared = prepare(&start);
            let mut inner = self.lock();
            if self.queued(&mut inner, key)? == start {
                break (inner, prepared);
            }
        };
        let entry = inner.ranks.get_mut(key)?;
        let started = prepared.and_then(|files| exec(&entry.start, &entry.secret, files));
        match started {
            Ok((pid, process)) => {
                entry.process = Process::Running(pid);
                entry.status.pid = pid;
                let generation = Arc::clone(&entry.generation);
                Some((process, Launch { start: entry.start.clone(), generation }))
            }
            Err(not_started) => {
                let generation = entry.target();
                inner.ranks.remove(key);
                self.emptied.notify_all();
                drop(inner);
                self.report(key.clone(), generation, Ending::from(not_started));
                None
            }
        }
    }

    /// Returns what is to be started under this name: the newest start that was asked for. None where that
    /// has been done, or nothing is wanted any more.
    fn queued(&self, inner: &mut Inner, key: &Key) -> Option<StartRank> {
        if inner.closed {
            inner.ranks.retain(|_, entry| entry.process != Process::Queued);
            self.emptied.notify_all();
            return None;
        }
        let entry = inner.ranks.get_mut(key).filter(|entry| entry.process == Process::Queued)?;
        if let Some(next) = entry.next.take() {
            *entry = Entry::new(next);
        }
        Some(entry.start.clone())
    }

    /// Notes that the leader is a zombie: from now on only its waiter touches what is left.
    pub fn ending(&self, key: &Key, pid: u32) {
        if let Some(entry) = self.lock().ranks.get_mut(key)
            && entry.process == Process::Running(pid)
        {
            entry.process = Process::Ended(pid);
            entry.begin_to_clear(Instant::now());
        }
    }

    /// Returns why the agent killed this process; none when it did not.
    pub fn killed_because(&self, key: &Key, pid: u32) -> Option<Killed> {
        let inner = self.lock();
        if let Some(undead) = inner.slots_out.undead(key, pid) {
            return Some(Killed { because: undead.why.clone(), cause: cause::SURVIVES });
        }
        inner.ranks.get(key).filter(|entry| entry.pid() == Some(pid))?.killed.clone()
    }

    /// Whether this process has connected.
    pub(crate) fn has_connected(&self, key: &Key, pid: u32) -> bool {
        let inner = self.lock();
        inner.ranks.get(key).is_some_and(|entry| entry.pid() == Some(pid) && entry.has_connected())
    }

    /// Removes a process of which nothing is left. Of one that counted as undead nothing more is said.
    pub fn ended(&self, key: &Key, pid: u32, ending: Ending) {
        let mut inner = self.lock();
        if let Some(undead) = inner.slots_out.exhume(key, pid) {
            tracing::info!(job_id = %key.0, rank = key.1.0, pid, slot = undead.slot, reason = %ending.reason, "an undead rank has ended; its slot takes ranks again");
            self.news.notify_one();
            return;
        }
        if inner.ranks.get(key).is_none_or(|entry| entry.pid() != Some(pid)) {
            return;
        }
        let Some(mut entry) = inner.ranks.remove(key) else { return };
        self.emptied.notify_all();
        let StartRank { local_rank: slot, device, .. } = &entry.start;
        if ending.operation == operation::DEVICE && !device.is_empty() {
            inner.slots_out.fault(*slot, device, Instant::now(), &ending.reason);
        }
        let next = entry.next.take();
        if next.is_none() || inner.closed {
            self.exits.add(entry.exit(ending));
        }
        // The slots may have changed as well.
        self.news.notify_one();
        drop(inner);
        // The coordinator asked for the replacement, so it needs no word of the old process.
        if let Some(start) = next {
            self.start(start);
        }
    }
}
