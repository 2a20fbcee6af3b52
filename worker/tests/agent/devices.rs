//! Devices that fail and come back, behind a worker that is a shell script.

use std::fs;
use std::path::PathBuf;

use ringmaster_agent::{DeviceInfo, Options, RankProgram, WorkerInfo};
use ringmaster_proto::limits;
use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::{ExitClass, Generation, RankExited, StartRank};
use tempfile::TempDir;

use super::coordinator::Seen;
use super::harness::{Cluster, start_rank};

/// A worker whose ranks find that their device has gone.
struct Script {
    folder: TempDir,
}

impl Script {
    fn path(&self) -> PathBuf {
        self.folder.path().join("worker")
    }

    /// Replaces it by one that lists these GPUs: the agent asks again.
    fn list(&self, uuids: &[&str]) {
        let device = |uuid: &&str| DeviceInfo { uuid: (*uuid).to_owned(), ..DeviceInfo::default() };
        let info = WorkerInfo {
            protocol: limits::RANK_PROTOCOL,
            devices: uuids.iter().map(device).collect(),
            ..WorkerInfo::default()
        };
        let answer = serde_json::to_string(&info).unwrap();
        let words = r#"{"reason": "the GPU is lost", "class": "node", "operation": "device", "cause": "lost"}"#;
        let text = format!(
            "if test \"$1\" = probe; then echo '{answer}'; exit; fi\n\
             echo \"sees $CUDA_VISIBLE_DEVICES alone, as $RINGMASTER_DEVICE\"\n\
             echo '{words}' > \"$RINGMASTER_STATUS_FILE\"; exit 77\n"
        );
        let next = self.path().with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(&next, self.path()).unwrap();
    }

    fn options(&self, options: &mut Options) {
        let prefix = vec!["/bin/sh".into()];
        options.rank_program = RankProgram::Worker { path: self.path(), prefix };
        options.accelerator = "cuda".to_owned();
    }
}

fn on_device(rank: u32, counter: u32, device: &str) -> Order {
    let start = start_rank(rank, Generation::new(1, counter), "no manifest");
    Order::StartRank(StartRank { device: device.to_owned(), ..start })
}

/// Waits for the exit of a rank of this generation.
async fn exit(cluster: &Cluster, generation: Generation) -> RankExited {
    let find = |seen: &Seen| {
        let mut exits = seen.exits().into_iter();
        exits.find(|exit| exit.generation == Some(generation)).cloned()
    };
    cluster.coordinator.wait_for("the exit of a generation", find).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_device_failed_is_out_of_service_until_the_worker_lists_it_again() {
    let script = Script { folder: tempfile::tempdir().unwrap() };
    script.list(&["GPU-a", "GPU-b"]);
    let cluster = Cluster::start_with(|options| script.options(options)).await;
    let coordinator = &cluster.coordinator;
    assert_eq!(coordinator.seen().registrations()[0].worker.as_ref().unwrap().unusable, "");
    script.list(&["GPU-a"]);

    coordinator.order(on_device(1, 1, "GPU-b")).await;
    let lost = exit(&cluster, Generation::new(1, 1)).await;
    assert_eq!((lost.class(), lost.code), (ExitClass::Node, Some(77)));
    assert_eq!((lost.operation.as_str(), lost.cause.as_str()), ("device", "lost"));
    assert_eq!(coordinator.seen().slots_out(), [[1]], "told before the exit");
    let line = |seen: &Seen| seen.line("sees ");
    let line = coordinator.wait_for("what the rank sees", line).await;
    assert_eq!(line, "GPU-b alone, as GPU-b");

    coordinator.order(on_device(1, 2, "GPU-b")).await;
    let refused = exit(&cluster, Generation::new(1, 2)).await;
    assert_eq!((refused.class(), refused.cause.as_str()), (ExitClass::Retry, "slots"));
    assert!(refused.reason.contains("GPU-b"), "{}", refused.reason);
    // The other slot has its own GPU, and takes ranks.
    coordinator.order(on_device(0, 3, "GPU-a")).await;
    assert_eq!(exit(&cluster, Generation::new(1, 3)).await.operation, "device");

    script.list(&["GPU-a", "GPU-b"]);
    let back = |seen: &Seen| seen.slots_out().last().is_some_and(Vec::is_empty).then_some(());
    coordinator.wait_for("both slots to take ranks again", back).await;
}
