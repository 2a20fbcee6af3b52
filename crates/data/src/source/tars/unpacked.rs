//! Shards that are compressed as a whole: unpacked into memory, and kept there while they are read.

use std::collections::VecDeque;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;

use crate::Error;

/// Shards kept at once, and their bytes; the one in use is kept whatever it has.
const SHARDS: usize = 4;
const BYTES: u64 = 1 << 30;
/// Bytes to which a shard may unpack.
const LONGEST: u64 = 16 << 30;

/// Whether a file that begins with these bytes is compressed by gzip.
pub(super) fn is_gzip(beginning: &[u8]) -> bool {
    beginning.starts_with(b"\x1f\x8b")
}

/// Whether a file of this name is to be compressed by gzip.
pub(super) fn is_gzip_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(".gz") || name.ends_with(".tgz")
}

/// An unpacked shard.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) bytes: Bytes,
    /// What is wrong with the compressed bytes behind those that could be unpacked.
    pub(super) damage: Option<String>,
}

impl Unpacked {
    fn of(packed: &[u8]) -> Self {
        Self::at_most(packed, LONGEST)
    }

    fn at_most(packed: &[u8], longest: u64) -> Self {
        let mut bytes = Vec::new();
        let read = MultiGzDecoder::new(packed).take(longest).read_to_end(&mut bytes);
        let damage = match read {
            Err(error) => Some(format!("cannot be unpacked after byte {} ({error})", bytes.len())),
            Ok(_) if bytes.len() as u64 >= longest => {
                Some(format!("unpacks to more than the {longest} bytes that are read"))
            }
            Ok(_) => None,
        };
        Self { bytes: bytes.into(), damage }
    }
}

/// The shards unpacked last; shared by the threads that fetch.
#[derive(Debug, Default)]
pub(super) struct Cache {
    slots: Mutex<VecDeque<(usize, Slot)>>,
}

/// None until the thread that holds the lock has unpacked it.
type Slot = Arc<Mutex<Option<Arc<Unpacked>>>>;

impl Cache {
    /// Returns a shard, unpacked once although several threads may ask for it. `packed` reads it.
    ///
    /// # Errors
    /// Those of `packed`.
    pub(super) fn get(
        &self,
        shard: usize,
        packed: impl FnOnce() -> Result<Bytes, Error>,
    ) -> Result<Arc<Unpacked>, Error> {
        let slot = self.slot(shard);
        let mut held = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unpacked) = &*held {
            return Ok(Arc::clone(unpacked));
        }
        let unpacked = Arc::new(Unpacked::of(&packed()?));
        *held = Some(Arc::clone(&unpacked));
        drop(held);
        self.make_room();
        Ok(unpacked)
    }

    /// Returns the place of a shard, which is now the one used last.
    fn slot(&self, shard: usize) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let known = slots.iter().position(|(other, _)| *other == shard);
        let slot = known.and_then(|place| slots.remove(place)).map(|(_, slot)| slot);
        let slot = slot.unwrap_or_default();
        slots.push_back((shard, Arc::clone(&slot)));
        slot
    }

    fn make_room(&self) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is being unpacked counts once it is.
        let size = |slot: &Slot| match slot.try_lock().as_deref() {
            Ok(Some(unpacked)) => unpacked.bytes.len() as u64,
            _ => 0,
        };
        let mut bytes: u64 = slots.iter().map(|(_, slot)| size(slot)).sum();
        while slots.len() > 1
            && (slots.len() > SHARDS || bytes > BYTES)
            && let Some((_, oldest)) = slots.pop_front()
        {
            bytes -= size(&oldest).min(bytes);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn several_gzip_streams_are_one_file_and_what_is_cut_is_told() {
        let two = [packed(b"hello "), packed(b"world")].concat();
        let whole = Unpacked::of(&two);
        assert_eq!((&whole.bytes[..], &whole.damage), (&b"hello world"[..], &None));
        let cut = Unpacked::of(&two[..two.len() - 3]);
        assert_eq!(&cut.bytes[..], b"hello world");
        assert!(cut.damage.unwrap().starts_with("cannot be unpacked after byte 11 ("));
        let bomb = Unpacked::at_most(&packed(&[0; 5000]), 1000);
        assert_eq!(bomb.bytes.len(), 1000);
        assert!(bomb.damage.unwrap().contains("more than the 1000 bytes"));
    }

    #[test]
    fn a_shard_is_unpacked_once_while_it_is_among_those_used_last() {
        let (cache, reads) = (Cache::default(), AtomicUsize::new(0));
        let get = |shard: usize| {
            let read = || {
                reads.fetch_add(1, Ordering::SeqCst);
                Ok(packed(&[shard as u8; 9]).into())
            };
            assert_eq!(&cache.get(shard, read).unwrap().bytes[..], [shard as u8; 9]);
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| get(0));
            }
        });
        assert_eq!(reads.load(Ordering::SeqCst), 1);
        // The fifth puts out the one used longest ago, which is not the first.
        for shard in [1, 2, 3, 0, 4, 0, 2, 3, 4] {
            get(shard);
        }
        assert_eq!(reads.load(Ordering::SeqCst), 5);
        get(1);
        assert_eq!(reads.load(Ordering::SeqCst), 6);
    }

    #[test]
    fn a_shard_that_could_not_be_read_is_read_again() {
        let cache = Cache::default();
        let failed = cache.get(0, || Err(Error::Missing { url: "a".into() }));
        assert!(matches!(failed, Err(Error::Missing { .. })));
        assert_eq!(&cache.get(0, || Ok(packed(b"x").into())).unwrap().bytes[..], b"x");
    }
}
