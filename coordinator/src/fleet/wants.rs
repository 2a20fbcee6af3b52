//! What a job asks of the cluster, out of its manifest.

use std::collections::BTreeMap;

use ringmaster_manifest::SpecError;
use ringmaster_manifest::spec::Accelerator;

use crate::state::JobRecord;

/// The part of a validated manifest that the coordinator acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) ranks: u32,
    pub(super) priority: i32,
    /// As agents spell it.
    pub(super) accelerator: String,
    pub(super) threads_per_rank: Option<u32>,
    pub(super) max_without_progress: u32,
}

impl Wants {
    /// Reads a validated manifest.
    pub(super) fn read(manifest: &str) -> Result<Self, SpecError> {
        let job = ringmaster_manifest::from_validated_json(manifest)?;
        let accelerator = match job.resources.accelerator {
            Accelerator::Cpu => "cpu",
            Accelerator::Cuda => "cuda",
        };
        Ok(Self {
            name: job.name,
            labels: job.labels,
            ranks: job.resources.ranks,
            priority: job.resources.priority,
            accelerator: accelerator.to_owned(),
            threads_per_rank: job.resources.threads_per_rank,
            max_without_progress: job.restart.max_without_progress,
        })
    }

    /// What is known of a job whose manifest cannot be read any more.
    pub(super) fn of_record(record: &JobRecord) -> Self {
        Self {
            name: record.name.clone(),
            labels: record.labels.clone(),
            ranks: record.world_size,
            priority: record.priority,
            accelerator: String::new(),
            threads_per_rank: None,
            max_without_progress: 0,
        }
    }
}
