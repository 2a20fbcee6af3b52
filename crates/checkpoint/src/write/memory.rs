//! Host memory for snapshots: one copy of a rank's part of the state, allocated once and reused.
//!
//! [`Memory::reserve`] touches the pages on a thread of its own, so that not even the first snapshot
//! waits for the kernel. While a snapshot is being written its memory is lent out as [`Bytes`]; it
//! returns when the last of them is dropped, and only then is there room for the next snapshot.
//! So a rank never holds more than one snapshot, however slow its store is.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

/// Bytes of a page; the kernel hands out memory no finer.
const PAGE: usize = 4096;

/// The memory of one rank's snapshots, shared by everybody who holds a clone.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    slot: Mutex<Slot>,
    returned: Condvar,
}

#[derive(Debug, Default)]
enum Slot {
    /// Nothing is allocated yet.
    #[default]
    Empty,
    /// Ready for a snapshot; of any length.
    Here(Vec<u8>),
    /// Being allocated, which takes moments.
    Preparing,
    /// Being filled or written.
    Lent,
}

impl Memory {
    /// Allocates `len` bytes in the background, unless memory is there already.
    ///
    /// # Panics
    /// The system allows no further thread.
    pub fn reserve(&self, len: usize) {
        {
            let mut slot = self.shared.slot();
            if !matches!(*slot, Slot::Empty) {
                return;
            }
            *slot = Slot::Preparing;
        }
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new()
            .name("snapshot-memory".to_owned())
            .spawn(move || shared.take_back(touched(len)))
            .expect("a rank may start threads");
    }

    /// Returns memory of `len` bytes to fill; none while it is lent out, and that for longer than
    /// `patience`.
    pub fn take(&self, len: usize, patience: Duration) -> Option<SnapshotBuffer> {
        let preparing = |slot: &mut Slot| matches!(slot, Slot::Preparing);
        let ready = self.shared.returned.wait_while(self.shared.slot(), preparing);
        let ready = ready.unwrap_or_else(PoisonError::into_inner);
        let lent = |slot: &mut Slot| matches!(slot, Slot::Lent);
        let waited = self.shared.returned.wait_timeout_while(ready, patience, lent);
        let (mut slot, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let bytes = match std::mem::replace(&mut *slot, Slot::Lent) {
            Slot::Lent | Slot::Preparing => return None,
            Slot::Empty => Vec::new(),
            Slot::Here(bytes) => bytes,
        };
        drop(slot);
        // Before it is resized: what was not asked for any more goes back to the system first, so
        // that old and new memory never stand side by side.
        let bytes = if bytes.len() == len {
            bytes
        } else {
            drop(bytes);
            touched(len)
        };
        Some(SnapshotBuffer { bytes: Lent { bytes, shared: Arc::clone(&self.shared) } })
    }
}

impl Shared {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_back(&self, bytes: Vec<u8>) {
        *self.slot() = Slot::Here(bytes);
        self.returned.notify_all();
    }
}

/// Zeros whose pages the kernel has already handed out.
fn touched(len: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; len];
    for page in bytes.chunks_mut(PAGE) {
        page[0] = std::hint::black_box(0);
    }
    bytes
}

/// Memory on loan; it returns when it is dropped.
#[derive(Debug)]
struct Lent {
    bytes: Vec<u8>,
    shared: Arc<Shared>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.shared.take_back(std::mem::take(&mut self.bytes));
    }
}

/// Memory to fill with a snapshot; whatever it held last is still in it.
#[derive(Debug)]
pub struct SnapshotBuffer {
    bytes: Lent,
}

impl SnapshotBuffer {
    /// Ends the filling: from here on the bytes are shared and do not change.
    pub fn filled(self) -> Bytes {
        Bytes::from_owner(self.bytes)
    }
}

impl Deref for SnapshotBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes.bytes
    }
}

impl DerefMut for SnapshotBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes.bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;
    const FOREVER: Duration = Duration::from_secs(60);

    #[test]
    fn there_is_one_snapshot_at_a_time_and_its_memory_comes_back() {
        let memory = Memory::default();
        let mut buffer = memory.take(5000, NOW).unwrap();
        buffer.fill(7);
        let address = buffer.as_ptr();
        let bytes = buffer.filled();
        assert!(memory.take(5000, NOW).is_none());
        let part = bytes.slice(10..20);
        drop(bytes);
        assert!(memory.take(5000, NOW).is_none(), "a part of it is still in use");
        drop(part);
        let again = memory.take(5000, NOW).unwrap();
        assert_eq!(again.as_ptr(), address);
        drop(again);
        assert_eq!(
            memory.take(3, NOW).unwrap().len(),
            3,
            "another world size needs another length"
        );
    }

    #[test]
    fn who_waits_gets_the_memory_when_it_comes_back() {
        let memory = Memory::default();
        memory.reserve(100);
        let bytes = memory.take(100, NOW).unwrap().filled();
        assert!(memory.take(100, NOW).is_none());
        let waiting = memory.clone();
        let waiter = std::thread::spawn(move || waiting.take(100, FOREVER).is_some());
        drop(bytes);
        assert!(waiter.join().unwrap());
    }
}
