//! The numeric plan: everything besides the data that decides the last bit of the weights.
//!
//! The first generation of a job fixes it; replacements and resumed runs compare. While it is
//! kept, a run on the same kind of CPU is bit for bit repeatable; where it cannot be, the log says
//! at which step that ended and why.

use ringmaster_manifest::spec::TrainJob;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::loss::Tiling;
use crate::split::even_counts;
use ringmaster_agent::env::RankEnv;
use ringmaster_inputs::image::jpeg;

/// The plan of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NumericPlan {
    /// Ranks; it decides shares and the order of reductions.
    pub world_size: usize,
    /// libtorch threads of every rank; matrix products split by them.
    pub threads: usize,
    /// Widest vector instructions libtorch uses.
    pub cpu_capability: String,
    /// libtorch the binary was built for.
    pub libtorch: String,
    /// Text rows that travel round the ring together.
    pub sub_chunk: usize,
    /// Image rows of a tile of dot products.
    #[serde(default = "unknown_tile_rows")]
    pub tile_rows: usize,
    /// Ranks that stand together in the ring; 1 is the flat ring.
    #[serde(default = "flat")]
    pub ring_group: usize,
    /// Bytes of logits InfoNCE may keep.
    pub logits_budget: u64,
    /// Samples a rank sends through a tower at once; none: its whole share.
    pub micro_per_rank: Option<u32>,
    /// Alignment of every parameter in the flat buffers, in bytes.
    pub alignment: usize,
    /// What decodes JPEGs, with its version.
    #[serde(default = "first_jpeg_decoder")]
    pub jpeg_decoder: String,
}

impl NumericPlan {
    /// Returns the plan this process would use.
    pub(crate) fn propose(job: &TrainJob, env: &RankEnv, device: Device) -> Self {
        let world_size = env.world_size as usize;
        let given = |rows: Option<u32>| rows.map_or(0, |rows| rows as usize);
        let tiling = Tiling::choose(device, given(job.loss.sub_chunk), given(job.loss.tile_rows));
        let chosen = || ring_group(world_size, env.local_world_size as usize);
        Self {
            world_size,
            threads: env.threads.max(1) as usize,
            cpu_capability: cpu_capability(),
            libtorch: crate::ffi::LIBTORCH.to_owned(),
            sub_chunk: tiling.sub_chunk,
            tile_rows: tiling.image_rows,
            ring_group: job.loss.ring_group.map_or_else(chosen, |group| group.max(1) as usize),
            logits_budget: job.loss.logits_budget,
            micro_per_rank: job.batch.micro_per_rank,
            alignment: 64,
            jpeg_decoder: jpeg::DECODER.to_owned(),
        }
    }

    /// Returns this plan for a ring of `world_size` of the job's ranks.
    ///
    /// The global batch stays, so that each of fewer ranks holds more rows. They need not fit: what
    /// goes through a tower at once is no more than it was with all ranks.
    pub(crate) fn among(self, job: &TrainJob, world_size: usize) -> Self {
        let all = job.resources.ranks as usize;
        let most =
            |ranks| even_counts(job.batch.global as usize, ranks).into_iter().max().unwrap_or(0);
        let micro_per_rank = match self.micro_per_rank {
            None if most(world_size) > most(all) => u32::try_from(most(all)).ok(),
            given => given,
        };
        Self { world_size, micro_per_rank, ..self }
    }

    /// Returns this plan with what can be kept of the plan `fixed` earlier.
    pub(crate) fn keeping(&self, fixed: &Self) -> Self {
        let divides = self.world_size.is_multiple_of(fixed.ring_group.max(1));
        Self {
            threads: fixed.threads,
            sub_chunk: fixed.sub_chunk,
            tile_rows: fixed.tile_rows,
            // The same on every rank: what only this rank's node suggests must not decide.
            ring_group: if divides { fixed.ring_group.max(1) } else { 1 },
            logits_budget: fixed.logits_budget,
            ..self.clone()
        }
    }

    /// Sizes of sub-chunks and tiles.
    pub(crate) fn tiling(&self) -> Tiling {
        Tiling { sub_chunk: self.sub_chunk, image_rows: self.tile_rows }
    }

    /// Says in words where `self` departs from the plan `fixed` earlier.
    pub(crate) fn departures(&self, fixed: &Self) -> Vec<String> {
        let mut departures = Vec::new();
        let mut compare = |name: &str, now: String, then: String| {
            if now != then {
                departures.push(format!("{name} is {now}, was {then}"));
            }
        };
        compare("world size", self.world_size.to_string(), fixed.world_size.to_string());
        compare("threads per rank", self.threads.to_string(), fixed.threads.to_string());
        compare("CPU capability", self.cpu_capability.clone(), fixed.cpu_capability.clone());
        compare("libtorch", self.libtorch.clone(), fixed.libtorch.clone());
        compare("sub-chunk", self.sub_chunk.to_string(), fixed.sub_chunk.to_string());
        compare("tile rows", self.tile_rows.to_string(), fixed.tile_rows.to_string());
        compare("ring group", self.ring_group.to_string(), fixed.ring_group.to_string());
        compare("logits budget", self.logits_budget.to_string(), fixed.logits_budget.to_string());
        let micro = |plan: &Self| plan.micro_per_rank.map_or("the share".into(), |n| n.to_string());
        compare("micro-batch", micro(self), micro(fixed));
        compare("alignment", self.alignment.to_string(), fixed.alignment.to_string());
        if !same_pixels(&self.jpeg_decoder, &fixed.jpeg_decoder) {
            compare("JPEG decoder", self.jpeg_decoder.clone(), fixed.jpeg_decoder.clone());
        }
        departures
    }
}

/// What the first plans, which did not say, had.
fn unknown_tile_rows() -> usize {
    512
}

/// What decoded JPEGs before plans said.
fn first_jpeg_decoder() -> String {
    "zune-jpeg".to_owned()
}

/// Whether two decoders of JPEGs give the same pixels. libjpeg-turbo, which older plans name, and
/// every version of its port do; others differ by a few of 255.
fn same_pixels(one: &str, other: &str) -> bool {
    one == other || [one, other].iter().all(|decoder| decoder.starts_with("libjpeg-turbo"))
}

fn flat() -> usize {
    1
}

/// Ranks from which on a flat ring's latencies add up to more than its simplicity is worth.
const GROUPS_FROM: usize = 16;

/// The ranks of a node stand together where there are many ranks on several nodes.
fn ring_group(world_size: usize, local_world_size: usize) -> usize {
    let several_nodes = local_world_size < world_size;
    let even = world_size.is_multiple_of(local_world_size.max(1));
    if world_size >= GROUPS_FROM && several_nodes && even { local_world_size.max(1) } else { 1 }
}

fn cpu_capability() -> String {
    if let Ok(forced) = std::env::var("ATEN_CPU_CAPABILITY") {
        return forced;
    }
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "avx512".to_owned();
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "avx2".to_owned();
        }
    }
    "default".to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tests::job;

    #[test]
    fn the_ring_goes_over_nodes_only_where_there_are_many_ranks_on_several() {
        assert_eq!(ring_group(2, 1), 1);
        assert_eq!(ring_group(8, 4), 1);
        assert_eq!(ring_group(16, 8), 8);
        assert_eq!(ring_group(256, 8), 8);
        assert_eq!(ring_group(16, 16), 1);
        assert_eq!(ring_group(18, 8), 1);
    }

    fn plan(ring_group: usize, micro_per_rank: Option<u32>) -> NumericPlan {
        NumericPlan {
            world_size: 4,
            threads: 3,
            cpu_capability: "avx2".to_owned(),
            libtorch: "2.11".to_owned(),
            sub_chunk: 256,
            tile_rows: 64,
            ring_group,
            logits_budget: 1 << 20,
            micro_per_rank,
            alignment: 64,
            jpeg_decoder: first_jpeg_decoder(),
        }
    }

    #[test]
    fn only_a_jpeg_decoder_with_other_pixels_departs_from_the_plan() {
        let decoded_by =
            |decoder: &str| NumericPlan { jpeg_decoder: decoder.to_owned(), ..plan(1, None) };
        let now = decoded_by(jpeg::DECODER);
        for same in ["libjpeg-turbo", "libjpeg-turbo-rs 0.8.2", jpeg::DECODER] {
            assert!(now.departures(&decoded_by(same)).is_empty(), "{same}");
        }
        let departures = now.departures(&decoded_by("zune-jpeg")).join("; ");
        assert_eq!(departures, format!("JPEG decoder is {}, was zune-jpeg", jpeg::DECODER));
    }

    #[test]
    fn fewer_ranks_take_their_larger_share_in_parts_no_larger_than_before() {
        // 12 rows each for 4 ranks.
        let job = job(4, 4, 48);
        let micro = |given, world_size| plan(1, given).among(&job, world_size).micro_per_rank;
        assert_eq!((micro(None, 4), micro(None, 3), micro(None, 1)), (None, Some(12), Some(12)));
        assert_eq!((micro(Some(5), 4), micro(Some(5), 2)), (Some(5), Some(5)));
        assert_eq!(plan(1, None).among(&job, 3).world_size, 3);
    }

    #[test]
    fn a_group_that_does_not_divide_the_ranks_left_falls_back_to_the_flat_ring() {
        let (job, fixed) = (job(4, 4, 48), plan(2, None));
        let kept = |world_size| fixed.clone().among(&job, world_size).keeping(&fixed);
        assert_eq!([4, 3, 2, 1].map(|ranks| kept(ranks).ring_group), [2, 1, 2, 1]);
        assert!(kept(4).departures(&fixed).is_empty());
        let departures = kept(3).departures(&fixed).join("; ");
        assert!(departures.contains("world size is 3, was 4"), "{departures}");
        assert!(departures.contains("ring group is 1, was 2"), "{departures}");
    }
}
