//! Samples as members of a tar, which is made in memory.

use std::io;

use serde_json::json;

use super::Prepared;

/// Unit of a tar.
const BLOCK: u64 = 512;

/// A file in a shard.
#[derive(Debug)]
pub(super) struct Member<'a> {
    name: String,
    bytes: std::borrow::Cow<'a, [u8]>,
}

/// Returns the members of a sample, whose key is its number.
pub(super) fn members(number: u64, sample: &Prepared) -> Vec<Member<'_>> {
    let member =
        |extension: &str, bytes| Member { name: format!("{number:09}.{extension}"), bytes };
    let caption = sample.captions.first().map_or("", String::as_str);
    let mut members = vec![
        member(sample.image.extension, sample.image.bytes.as_ref().into()),
        member("txt", caption.as_bytes().into()),
    ];
    if sample.captions.len() > 1 {
        let all = json!({"captions": sample.captions, "key": sample.key}).to_string();
        members.push(member("json", all.into_bytes().into()));
    }
    members
}

/// Returns the bytes that members take in a tar.
pub(super) fn bytes(members: &[Member<'_>]) -> u64 {
    members.iter().map(|member| BLOCK + (member.bytes.len() as u64).next_multiple_of(BLOCK)).sum()
}

/// A shard that is being filled.
pub(super) struct Shard {
    tar: tar::Builder<Vec<u8>>,
    samples: u64,
}

impl Default for Shard {
    fn default() -> Self {
        Self { tar: tar::Builder::new(Vec::new()), samples: 0 }
    }
}

impl Shard {
    pub(super) fn samples(&self) -> u64 {
        self.samples
    }

    pub(super) fn bytes(&self) -> u64 {
        self.tar.get_ref().len() as u64
    }

    /// Appends a sample. Neither time nor owner is written, so that the same samples are the same bytes.
    pub(super) fn append(&mut self, members: &[Member<'_>]) -> io::Result<()> {
        for member in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(member.bytes.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            self.tar.append_data(&mut header, &member.name, &*member.bytes)?;
        }
        self.samples += 1;
        Ok(())
    }

    /// Returns the samples and the bytes of the tar.
    pub(super) fn finish(self) -> (u64, Vec<u8>) {
        let bytes = self.tar.into_inner().expect("writing to memory does not fail");
        (self.samples, bytes)
    }
}
