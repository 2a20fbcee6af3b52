//! Checksums of an object's content, one for every [`CHUNK`] bytes.
//!
//! BLAKE3: as strong as SHA-256 and several times as fast, so that hashing keeps a disk busy and
//! leaves the cores to training. Checkpoints of manifest version 1 have SHA-256.

use sha2::{Digest, Sha256};

use super::layout::CHUNK;
use super::manifest::Object;

/// A checksum in the making.
#[derive(Debug, Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Returns one of the kind that this build writes.
    pub(crate) fn current() -> Self {
        Self::Blake3(Box::default())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// Returns the checksum in hexadecimal, and begins anew.
    pub(crate) fn finish(&mut self) -> String {
        match self {
            Self::Sha256(hasher) => hex::encode(hasher.finalize_reset()),
            Self::Blake3(hasher) => {
                let sum = hasher.finalize().to_hex().to_string();
                hasher.reset();
                sum
            }
        }
    }
}

impl Object {
    /// Returns a hasher of the kind its checksums are.
    pub(crate) fn hasher(&self) -> Hasher {
        if self.blake3.is_empty() { Hasher::Sha256(Sha256::new()) } else { Hasher::current() }
    }

    /// Returns its checksums.
    pub(crate) fn sums(&self) -> &[String] {
        if self.blake3.is_empty() { &self.sha256 } else { &self.blake3 }
    }

    /// Returns why its checksums cannot be those of an object of its size, if so.
    pub(crate) fn miscounted(&self) -> Option<String> {
        let (listed, size) = (self.sums().len() as u64, self.size);
        let reason = || format!("the manifest lists {listed} checksums for {size} bytes");
        (listed != size.div_ceil(CHUNK as u64)).then(reason)
    }

    /// Whether `bytes` are what its chunk number `index` says.
    pub(crate) fn verifies(&self, index: usize, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        self.sums().get(index).is_some_and(|expected| *expected == hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(sha256: &[&str], blake3: &[&str]) -> Object {
        let owned = |sums: &[&str]| sums.iter().map(|&sum| sum.to_owned()).collect();
        Object { name: "o".to_owned(), size: 3, sha256: owned(sha256), blake3: owned(blake3) }
    }

    #[test]
    fn both_kinds_are_what_their_standards_say() {
        // FIPS 180-2, B.1, and `b3sum` of the same three bytes.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let blake3 = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        for object in [object(&[sha256], &[]), object(&[], &[blake3])] {
            assert!(object.verifies(0, b"abc"));
            assert!(!object.verifies(0, b"abd") && !object.verifies(1, b"abc"));
            assert_eq!(object.miscounted(), None);
        }
        let reason = object(&[], &[]).miscounted();
        assert_eq!(reason.as_deref(), Some("the manifest lists 0 checksums for 3 bytes"));
    }

    #[test]
    fn a_hasher_begins_anew_after_each_checksum() {
        let mut hasher = Hasher::current();
        hasher.update(b"abc");
        let first = hasher.finish();
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.finish(), first);
    }
}
