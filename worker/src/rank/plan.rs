//! The numeric plan: everything besides the data that decides the last bit of the weights.
//!
//! The first generation of a job fixes it; replacements and resumed runs compare. While it is
//! kept, a run on the same kind of CPU is bit for bit repeatable; where it cannot be, the log says
//! at which step that ended and why.

use ringmaster_manifest::spec::TrainJob;
use serde::{Deserialize, Serialize};

/// The plan of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NumericPlan {
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
    /// Bytes of logits InfoNCE may keep.
    pub logits_budget: u64,
    /// Samples a rank sends through a tower at once.
    pub micro_per_rank: Option<u32>,
    /// Alignment of every parameter in the flat buffers, in bytes.
    pub alignment: usize,
}

impl NumericPlan {
    /// Returns the plan this process would use.
    pub(super) fn propose(job: &TrainJob, world_size: usize, threads: usize) -> Self {
        Self {
            world_size,
            threads,
            cpu_capability: cpu_capability(),
            libtorch: "2.11".to_owned(),
            sub_chunk: job.loss.sub_chunk as usize,
            logits_budget: job.loss.logits_budget,
            micro_per_rank: job.batch.micro_per_rank,
            alignment: 64,
        }
    }

    /// Says in words where `self` departs from the plan `fixed` earlier.
    pub(super) fn departures(&self, fixed: &Self) -> Vec<String> {
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
        compare("logits budget", self.logits_budget.to_string(), fixed.logits_budget.to_string());
        let micro = |plan: &Self| plan.micro_per_rank.map_or("the share".into(), |n| n.to_string());
        compare("micro-batch", micro(self), micro(fixed));
        compare("alignment", self.alignment.to_string(), fixed.alignment.to_string());
        departures
    }
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
