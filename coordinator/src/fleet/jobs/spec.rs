//! What a job asks of the cluster, out of its manifest.

use std::collections::BTreeMap;
use std::time::Duration;

use ringmaster_manifest::spec::{Accelerator, TrainJob};
use ringmaster_manifest::{from_validated_json, stored};

use crate::state::JobRecord;

/// The part of a job that the coordinator acts on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct JobSpec {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// The most it runs with.
    pub(crate) ranks: u32,
    /// The fewest.
    pub(crate) min_ranks: u32,
    /// Steps of the whole run.
    pub(crate) total_steps: u64,
    pub(crate) priority: i32,
    /// As agents spell it.
    pub(crate) accelerator: String,
    pub(crate) threads_per_rank: Option<u32>,
    pub(crate) max_without_progress: u32,
    /// At most so long from a request to stop until ranks are killed; none as long as they move.
    pub(crate) stop_within: Option<Duration>,
    /// Where a new run takes weights from.
    pub(crate) pretrained: Vec<String>,
}

impl JobSpec {
    /// Reads a stored job.
    pub(crate) fn read(manifest: &str) -> Result<Self, stored::Error> {
        from_validated_json(manifest).map(Self::of)
    }

    /// Returns what a job asks for.
    pub(crate) fn of(job: TrainJob) -> Self {
        let accelerator = match job.resources.accelerator {
            Accelerator::Cpu => "cpu",
            Accelerator::Cuda => "cuda",
        };
        Self {
            name: job.name,
            labels: job.labels,
            ranks: job.resources.ranks,
            min_ranks: job.resources.min_ranks.clamp(1, job.resources.ranks),
            total_steps: job.schedule.total_steps,
            priority: job.resources.priority,
            accelerator: accelerator.to_owned(),
            threads_per_rank: job.resources.threads_per_rank,
            max_without_progress: job.restart.max_without_progress,
            stop_within: job.checkpoint.stop_within.map(Duration::from_secs),
            pretrained: [
                job.model.pretrained,
                job.model.pretrained_image,
                job.model.pretrained_text,
            ]
            .into_iter()
            .flatten()
            .collect(),
        }
    }

    /// What is known of a job whose manifest cannot be read any more.
    pub(crate) fn of_record(record: &JobRecord) -> Self {
        Self {
            name: record.name.clone(),
            labels: record.labels.clone(),
            ranks: record.ranks,
            min_ranks: record.ranks,
            priority: record.priority,
            ..Self::default()
        }
    }
}
