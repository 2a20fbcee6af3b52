//! MANIFEST.json, which makes a checkpoint exist, and latest.json, which points at one.

use ringmaster_proto::v1::{Generation, StoredObject};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::layout::{self, StepName};

/// Format of both files that this build writes; it reads every version from 1 on.
///
/// 1: SHA-256 of every 16 MiB. 2: BLAKE3.
pub(crate) const VERSION: u64 = 2;

/// A generation as text, `g1.7`.
pub(crate) mod generation_text {
    use ringmaster_proto::v1::Generation;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        generation: &Generation,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(generation)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Generation, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// MANIFEST.json: every object of a checkpoint with size and checksums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    version: u64,
    pub(crate) job_id: String,
    pub(crate) step: u64,
    #[serde(with = "generation_text")]
    pub(crate) generation: Generation,
    /// Of parameters and optimizer state, as hexadecimal: JSON numbers end at 2^53 in many readers.
    digest: String,
    pub(crate) objects: Vec<Object>,
    /// SHA-256 of this file's compact form with this field empty, so that it vouches for itself.
    sha256: String,
}

/// An object of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Object {
    /// Below the checkpoint's folder.
    pub(crate) name: String,
    /// In bytes.
    pub(crate) size: u64,
    /// Of every 16 MiB, in order, hexadecimal; version 1 only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sha256: Vec<String>,
    /// Of every 16 MiB, in order, hexadecimal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) blake3: Vec<String>,
}

impl Manifest {
    /// Returns the manifest of a granted commit.
    pub(crate) fn new(
        job_id: &str,
        name: StepName,
        digest: u64,
        objects: Vec<StoredObject>,
    ) -> Self {
        let mut objects: Vec<Object> = objects
            .into_iter()
            .map(|StoredObject { name, size, sha256, blake3 }| Object {
                name,
                size,
                sha256,
                blake3,
            })
            .collect();
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        let mut manifest = Self {
            version: VERSION,
            job_id: job_id.to_owned(),
            step: name.step,
            generation: name.generation,
            digest: format!("{digest:016x}"),
            objects,
            sha256: String::new(),
        };
        manifest.sha256 = manifest.own_checksum();
        manifest
    }

    /// Of parameters and optimizer state.
    pub(crate) fn digest(&self) -> Option<u64> {
        u64::from_str_radix(&self.digest, 16).ok()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest is plain data")
    }

    /// Reads the MANIFEST.json of checkpoint `name`, or says why it cannot be trusted.
    pub(crate) fn decode(text: &[u8], name: StepName) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if !(1..=VERSION).contains(&manifest.version) {
            let found = manifest.version;
            return Err(format!("format version {found}, this build reads 1 to {VERSION}"));
        }
        if manifest.sha256 != manifest.own_checksum() {
            return Err("its content does not match its own checksum".to_owned());
        }
        let said = StepName { generation: manifest.generation, step: manifest.step };
        if said != name {
            return Err(format!("it is the manifest of {said}"));
        }
        for object in &manifest.objects {
            if object.name.is_empty() || object.name.contains(['/', '\\']) || object.name == ".." {
                return Err(format!("object name {:?} leads out of the checkpoint", object.name));
            }
        }
        match manifest.missing() {
            Some(missing) => Err(format!("it lists no {missing}")),
            None => Ok(manifest),
        }
    }

    /// Returns a part every checkpoint has and this one does not list.
    pub(crate) fn missing(&self) -> Option<String> {
        let has = |name: &str| self.objects.iter().any(|o| o.name == name);
        let fixed = [layout::MODEL, layout::STATE].into_iter().find(|name| !has(name));
        if let Some(name) = fixed {
            return Some(name.to_owned());
        }
        let world_size = self.objects.iter().filter(|o| layout::is_optim(&o.name)).count();
        let expected = (0..world_size.max(1)).map(|rank| layout::optim(rank, world_size.max(1)));
        expected.into_iter().find(|name| !has(name))
    }

    fn own_checksum(&self) -> String {
        let bare = Self { sha256: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&bare).expect("a manifest is plain data");
        hex::encode(Sha256::digest(text))
    }
}

/// latest.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pointer {
    version: u64,
    pub(crate) step: u64,
    #[serde(with = "generation_text")]
    pub(crate) generation: Generation,
    /// Folder of the checkpoint, beside latest.json.
    pub(crate) prefix: String,
}

impl Pointer {
    pub(crate) fn to(name: StepName) -> Self {
        let StepName { generation, step } = name;
        Self { version: VERSION, step, generation, prefix: name.to_string() }
    }

    pub(crate) fn name(&self) -> StepName {
        StepName { generation: self.generation, step: self.step }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a pointer is plain data")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name() -> StepName {
        StepName { generation: Generation::new(1, 7), step: 12 }
    }

    fn manifest() -> Manifest {
        let object = |name: &str| StoredObject {
            name: name.to_owned(),
            size: 3,
            sha256: Vec::new(),
            blake3: vec!["ab".to_owned()],
        };
        let objects = [layout::STATE, layout::MODEL, &layout::optim(0, 1)].map(object);
        Manifest::new("tiny-abc", name(), u64::MAX, objects.into())
    }

    #[test]
    fn a_manifest_round_trips_with_every_bit_of_the_digest() {
        let back = Manifest::decode(&manifest().encode(), name()).unwrap();
        assert_eq!(back, manifest());
        assert_eq!(back.digest(), Some(u64::MAX));
    }

    #[test]
    fn no_changed_byte_gives_another_manifest() {
        let text = manifest().encode();
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 1;
            if let Ok(read) = Manifest::decode(&damaged, name()) {
                assert_eq!(read, manifest(), "byte {at}");
            }
        }
    }

    #[test]
    fn a_manifest_that_was_copied_to_another_step_is_refused() {
        let other = StepName { step: 13, ..name() };
        let reason = Manifest::decode(&manifest().encode(), other).unwrap_err();
        assert_eq!(reason, "it is the manifest of step-0000000012.g1.7");
    }

    #[test]
    fn a_manifest_that_misses_a_ranks_slice_is_refused() {
        let mut objects = manifest().objects;
        objects.retain(|o| !layout::is_optim(&o.name));
        let mut short = Manifest { objects, ..manifest() };
        short.sha256 = short.own_checksum();
        let reason = Manifest::decode(&short.encode(), name()).unwrap_err();
        assert_eq!(reason, "it lists no optim-00000-of-00001.safetensors");
    }
}
