//! What is submitted, and how fast.

use std::sync::Arc;
use std::time::Duration;

use ringmaster_proto::v1::SubmitRequest;
use ringmaster_proto::v1::jobs_client::JobsClient;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::recorder::{Recorder, index_of};

/// A job that nobody trains: its ranks are simulated.
const MANIFEST: &str = "\
apiVersion: ringmaster/v1
kind: TrainJob
metadata: {name: bench}
spec:
  resources: {ranks: 1, accelerator: cpu}
  model: {name: emoji-vit}
  data: {train: \"/bench/{00000..00007}.tar\", seed: 0, lanes: 4096}
  loss: {kind: siglip}
  optimizer: {lr: 1.0e-3}
  schedule: {kind: cosine, warmup_steps: 10, steps: 1000000}
  batch: {global: 4096}
  checkpoint: {uri: /bench, every_steps: 1000}
";
/// Every how many jobs one reaches its end.
const ENDING: usize = 4;
/// Steps of a job that reaches its end.
const STEPS: u64 = 10;

/// How jobs come in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) jobs: u32,
    pub(crate) per_second: u32,
}

/// Steps after which a job ends; none for one that outlasts the measurement.
pub(crate) fn steps(job_id: &str) -> Option<u64> {
    index_of(job_id).filter(|index| index.is_multiple_of(ENDING)).map(|_| STEPS)
}

/// Submits every job when its time has come, whether or not earlier ones were answered.
pub(crate) async fn submit_all(
    client: JobsClient<Channel>,
    recorder: Arc<Recorder>,
    ranks: u32,
    rate: Rate,
) {
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for index in 0..rate.jobs {
        let due = start + Duration::from_secs(1) * index / rate.per_second;
        tokio::time::sleep_until(due).await;
        let (mut client, recorder) = (client.clone(), Arc::clone(&recorder));
        let request = request(ranks, index);
        let job = index as usize;
        recorder.submitted(job, due);
        calls.spawn(async move {
            match client.submit(request).await {
                Ok(_) => recorder.replied(job),
                Err(error) => recorder.lost(&format!("submit: {error}")),
            }
        });
    }
    calls.join_all().await;
}

/// One manifest for all, and what is different in this job.
fn request(ranks: u32, index: u32) -> SubmitRequest {
    let overrides = [
        ("metadata.name", format!("bench-{index:05}")),
        ("spec.resources.ranks", ranks.to_string()),
    ];
    SubmitRequest {
        file_name: "bench.yaml".to_owned(),
        request_id: format!("bench-{index}"),
        manifest_yaml: MANIFEST.to_owned(),
        overrides: overrides.map(|(field, value)| (field.to_owned(), value)).into(),
        ..SubmitRequest::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use ringmaster_manifest::{ModelCatalogue, Overrides, parse_with};

    use super::*;

    #[test]
    fn the_manifest_is_valid_and_jobs_differ_by_name_and_request() {
        let (first, second) = (request(8, 0), request(8, 17));
        assert_ne!(first.request_id, second.request_id);
        let overrides = Overrides::read(&second.overrides.into_iter().collect()).unwrap();
        let (folder, models) = (Path::new(""), ModelCatalogue::builtin());
        let job = parse_with(&second.manifest_yaml, "bench.yaml", folder, overrides, &models);
        let job = job.unwrap();
        assert_eq!((job.name.as_str(), job.resources.ranks), ("bench-00017", 8));
        assert_eq!(job.resources.min_ranks, 8);
    }

    #[test]
    fn one_job_in_four_ends() {
        assert_eq!(steps("bench-00000-abcdef"), Some(STEPS));
        assert_eq!(steps("bench-00001-abcdef"), None);
    }
}
