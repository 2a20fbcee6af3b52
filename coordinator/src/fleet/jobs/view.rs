//! What people see of a job.

use ringmaster_proto::v1;

use super::job::Job;

impl Job {
    /// A job as the wire shows it.
    pub(crate) fn view(&self) -> v1::Job {
        let record = &self.record;
        let ranks = self.seats().map(|seat| {
            let status = self.statuses[seat.index()].as_ref();
            v1::RankInfo {
                rank: seat.0,
                node: self.seat(seat).unwrap_or_default().to_owned(),
                pid: status.map_or(0, |status| status.pid),
                phase: status.map_or(0, |status| status.phase),
                step: status.map_or(0, |status| status.step),
            }
        });
        v1::Job {
            job_id: record.job_id.clone(),
            name: record.name.clone(),
            state: record.state.to_proto().into(),
            reason: record.reason.clone(),
            generation: record.generation,
            world_size: self.world_size(),
            submitted_at_ms: record.submitted_at_ms,
            started_at_ms: record.started_at_ms,
            ended_at_ms: record.ended_at_ms,
            metrics: self.metrics,
            ranks: ranks.collect(),
            recoveries: record.recoveries,
            summary_json: record.summary_json.clone(),
            manifest_yaml: record.manifest_yaml.clone(),
            resume_from: record.resume_from.clone(),
            checkpoint_step: record.checkpoint_step,
            checkpoint_url: record.checkpoint_url.clone(),
            labels: record.labels.clone().into_iter().collect(),
            priority: record.priority,
            max_ranks: record.ranks,
            min_ranks: self.spec.min_ranks,
            rolled_back_to: record.rollback.as_ref().map(|to| to.url.clone()).unwrap_or_default(),
            checkpoint_trouble: self.checkpoint_trouble.clone(),
        }
    }

    /// Ranks of the ring that stands or stood last; of a job without one, what it has, or asks for.
    fn world_size(&self) -> u32 {
        let record = &self.record;
        let has_ring = record.formed || record.state.is_ended();
        let ranks = if has_ring { record.ring.len() } else { self.taken() };
        match u32::try_from(ranks).expect("world sizes fit u32") {
            0 => record.ranks,
            ranks => ranks,
        }
    }
}
