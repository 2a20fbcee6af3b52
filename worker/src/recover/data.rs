//! Whether the ranks of a ring, and the checkpoint they go on from, mean the same by "the next sample".

use ringmaster_checkpoint as checkpoint;
use ringmaster_data::resumed;
use ringmaster_proto::v1::{Generation, JoinReply, NoteKind, StateSource};
use serde::{Deserialize, Serialize};

use crate::collective::{Collective, bytes};
use crate::error::Error;
use crate::rank::Rank;
use crate::replica::agreement::{all_have_seen_it, minority};

/// What a rank reads, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Read {
    fingerprint: String,
    samples: u64,
    shards: usize,
}

impl Rank {
    /// Makes sure that all ranks read the same data in the same order: nodes may hold different copies.
    ///
    /// # Errors
    /// [`Error::DataDiffers`] on every rank alike; the ring's own.
    pub(crate) fn compare_data(
        &self,
        reply: &JoinReply,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let own = Read {
            fingerprint: self.dataset.fingerprint().to_owned(),
            samples: self.dataset.len(),
            shards: self.dataset.shards(),
        };
        // Whoever holds the state that the ring goes on from has read what that was trained on.
        let right = (reply.source() == StateSource::Live).then_some(reply.source_rank as usize);
        compare(&own, right, collective)
    }

    /// Makes sure that the order of samples goes on where another run left it, or that the job takes another one;
    /// returns whether it does.
    ///
    /// # Errors
    /// [`Error::OtherData`].
    pub(crate) fn check_order(
        &self,
        generation: Generation,
        url: &str,
        is_own: bool,
        saved: &checkpoint::State,
    ) -> Result<bool, Error> {
        let Some(reason) =
            resumed::conflict(saved, &self.job.data, Some(self.dataset.fingerprint()))
        else {
            return Ok(false);
        };
        if is_own || !self.job.data.accept_new_data {
            let remedy = resumed::remedy(saved);
            return Err(Error::OtherData { what: format!("{url}: {reason}; {remedy}") });
        }
        let lens: Vec<String> = (0..self.dataset.order().shares().len())
            .map(|source| {
                let position = self.dataset.order().shares().before(source, saved.samples);
                let len = self.dataset.order().epoch_len(source as u32).max(1);
                let name = self.dataset.name(source as u32);
                format!("{name} at sample {} of {len} of epoch {}", position % len, position / len)
            })
            .collect();
        let message = format!(
            "{reason}. As accepted, the run goes on after {} samples in the new order ({}): within this epoch \
             some samples that were seen come again, and as many are missed",
            saved.samples,
            lens.join(", ")
        );
        tracing::warn!("{message}");
        self.history.note(generation, NoteKind::Data, message);
        Ok(true)
    }
}

/// Compares with all ranks; the one that is `right`, else most of them, decide who reads something else.
fn compare(own: &Read, right: Option<usize>, collective: &dyn Collective) -> Result<(), Error> {
    let text = serde_json::to_vec(own).expect("plain data serialises");
    // collective: two all-gathers of some bytes, once a generation.
    let all = bytes::gather(&text, collective)?
        .iter()
        .map(|text| serde_json::from_slice(text))
        .collect::<Result<Vec<Read>, _>>()
        .map_err(|e| Error::Internal { what: format!("what another rank reads: {e}") })?;
    if all.iter().all(|other| other.fingerprint == own.fingerprint) {
        return Ok(());
    }
    all_have_seen_it(collective);
    let fingerprints: Vec<&str> = all.iter().map(|read| read.fingerprint.as_str()).collect();
    let minority = match right.and_then(|rank| fingerprints.get(rank)) {
        Some(right) => (0..)
            .zip(&fingerprints)
            .filter(|(_, one)| *one != right)
            .map(|(rank, _)| rank)
            .collect(),
        None => minority(&fingerprints),
    };
    // Those that differ first, and one that does not.
    let differs = |rank: &usize| minority.contains(&(*rank as u32));
    let others = (0..all.len()).filter(|rank| !differs(rank));
    let shown =
        (0..all.len()).filter(differs).take(SHOWN).chain(others.take(match minority.len() {
            0 => SHOWN,
            _ => 1,
        }));
    let said = |rank: usize| {
        let Read { samples, shards, fingerprint } = &all[rank];
        format!("ring rank {rank}: {samples} samples in {shards} shards, fingerprint {fingerprint}")
    };
    let found: Vec<String> = shown.map(said).collect();
    let mine = minority.contains(&(collective.rank() as u32));
    Err(Error::DataDiffers { found: found.join(", "), minority, mine })
}

/// Ranks that a message lists.
const SHOWN: usize = 8;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::collective::testing::with_ring;

    fn compared(fingerprints: &[&str], right: Option<usize>) -> Vec<Result<(), Error>> {
        with_ring(fingerprints.len(), |ring| {
            let samples = 10 + ring.rank() as u64;
            let fingerprint = fingerprints[ring.rank()].to_owned();
            compare(&Read { fingerprint, samples, shards: 2 }, right, ring)
        })
    }

    fn minority_and_mine(found: Result<(), Error>) -> (Vec<u32>, bool) {
        match found.unwrap_err() {
            Error::DataDiffers { minority, mine, .. } => (minority, mine),
            other => panic!("{other:?}"),
        }
    }

    /// A replacement with a stale copy beside the only survivor: neither was named, and both met again for ever.
    #[test]
    fn whoever_holds_the_state_is_right_though_others_are_more() {
        for (rank, found) in compared(&["old", "new", "old"], Some(1)).into_iter().enumerate() {
            assert_eq!(minority_and_mine(found), (vec![0, 2], rank != 1));
        }
        for (rank, found) in compared(&["old", "new"], Some(0)).into_iter().enumerate() {
            assert_eq!(minority_and_mine(found), (vec![1], rank == 1));
        }
        for found in compared(&["old", "new"], None) {
            let error = found.unwrap_err();
            assert!(!error.regroups(), "nobody is right, and it will not change: {error}");
        }
    }

    #[test]
    fn ranks_that_read_the_same_agree() {
        for fingerprints in [&["a"][..], &["a", "a"], &["a", "a", "a"]] {
            assert!(compared(fingerprints, None).iter().all(Result::is_ok), "{fingerprints:?}");
        }
    }

    /// Nodes with different local copies trained on overlapping lanes, and nothing was said.
    #[test]
    fn a_rank_that_reads_another_copy_is_named_on_every_rank() {
        for (rank, found) in
            compared(&["a", "a", "longer than the others"], None).into_iter().enumerate()
        {
            let error = found.unwrap_err();
            assert!(error.to_string().contains("ring rank 2: 12 samples in 2 shards"), "{error}");
            assert!(
                matches!(&error, Error::DataDiffers { minority, mine, .. }
                    if minority == &[2] && *mine == (rank == 2)),
                "{error:?}"
            );
        }
    }
}
