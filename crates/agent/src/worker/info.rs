//! What a worker says of itself.

use ringmaster_proto::{limits, v1};
use serde::{Deserialize, Serialize};

/// The feature of a worker that can be made to fail on demand.
pub const FAULTS: &str = "faults";

/// The answer of `ringmaster-worker probe --json`, one line of JSON.
///
/// Keys are only ever added: an agent and a worker of different builds must understand each other far enough
/// to say that they do not fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerInfo {
    /// As `--version` says.
    pub version: String,
    /// Build id: which sources and features it was compiled from.
    pub build_id: String,
    /// Features it was compiled with.
    pub features: Vec<String>,
    /// Version of the language between agents and ranks ([`limits::RANK_PROTOCOL`]).
    pub protocol: u32,
    /// Version of libtorch it was compiled for.
    pub libtorch: String,
    /// GPUs its ranks may use, in the order of local ranks; none where they compute on the CPU.
    pub devices: Vec<DeviceInfo>,
}

/// A GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceInfo {
    /// The card's own name, as `nvidia-smi -L` shows it.
    pub uuid: String,
    /// The model's name.
    pub name: String,
    /// Device memory in bytes.
    pub memory_bytes: u64,
}

/// What an agent needs of its worker.
#[derive(Debug, Clone)]
pub(crate) struct Demands {
    /// "cpu" or "cuda".
    pub(crate) accelerator: String,
    /// Ranks this node can run at once.
    pub(crate) slots: u32,
    /// Whether a worker that can be made to fail on demand is taken.
    pub(crate) takes_faults: bool,
}

impl WorkerInfo {
    /// Says why ranks of this node cannot be this worker, and what to do about it.
    pub(super) fn misfit(&self, demands: &Demands) -> Result<(), String> {
        let (theirs, ours) = (self.protocol, limits::RANK_PROTOCOL);
        if theirs != ours {
            return Err(format!(
                "it speaks version {theirs} of the language between agents and ranks, this agent version \
                 {ours}; install ringmaster and ringmaster-worker of one release"
            ));
        }
        if self.features.iter().any(|feature| feature == FAULTS) && !demands.takes_faults {
            return Err(format!(
                "it was compiled with the feature {FAULTS} ({}), by which ranks fail on demand, and this is a \
                 release; install the worker of a release",
                self.version
            ));
        }
        let (devices, slots) = (self.devices.len(), demands.slots);
        if demands.accelerator == "cuda" && devices < slots as usize {
            return Err(format!(
                "it sees {devices} of the {slots} GPUs that --slots {slots} needs; start the agent with as many \
                 slots as `ringmaster-worker probe` lists GPUs"
            ));
        }
        Ok(())
    }
}

impl WorkerInfo {
    /// Whether it lists some of the GPUs that an earlier answer listed, and no other. Slots are places in the
    /// list: where one has gone, those behind it must not move up.
    pub(super) fn lists_part_of(&self, earlier: &[DeviceInfo]) -> bool {
        let is_known = |device: &DeviceInfo| earlier.iter().any(|known| known.uuid == device.uuid);
        !self.devices.is_empty() && self.devices.iter().all(is_known)
    }
}

impl From<&WorkerInfo> for v1::Worker {
    fn from(info: &WorkerInfo) -> Self {
        let devices = info.devices.iter().map(|device| v1::Device {
            uuid: device.uuid.clone(),
            name: device.name.clone(),
            memory_bytes: device.memory_bytes,
        });
        Self {
            unusable: String::new(),
            version: info.version.clone(),
            build_id: info.build_id.clone(),
            features: info.features.clone(),
            protocol: info.protocol,
            libtorch: info.libtorch.clone(),
            devices: devices.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(change: impl FnOnce(&mut WorkerInfo, &mut Demands)) -> Result<(), String> {
        let device = DeviceInfo::default();
        let mut info = WorkerInfo {
            version: "0.1.0 (build 1)".to_owned(),
            protocol: limits::RANK_PROTOCOL,
            devices: vec![device.clone(), device],
            ..WorkerInfo::default()
        };
        let mut demands = Demands { accelerator: "cuda".to_owned(), slots: 2, takes_faults: false };
        change(&mut info, &mut demands);
        info.misfit(&demands)
    }

    #[test]
    fn a_worker_of_this_release_with_a_gpu_for_every_slot_fits() {
        assert_eq!(fits(|_, _| {}), Ok(()));
        assert_eq!(fits(|_, demands| demands.slots = 1), Ok(()));
    }

    #[test]
    fn another_protocol_does_not_fit_and_both_versions_are_named() {
        let why = fits(|info, _| info.protocol += 1).expect_err("another protocol");
        let ours = limits::RANK_PROTOCOL;
        for version in [ours, ours + 1] {
            assert!(why.contains(&format!("version {version}")), "{why}");
        }
    }

    #[test]
    fn a_release_takes_no_worker_that_fails_on_demand_and_a_build_for_tests_does() {
        let faulty = |info: &mut WorkerInfo| info.features = vec![FAULTS.to_owned()];
        let why = fits(|info, _| faulty(info)).expect_err("a release");
        assert!(why.contains("faults") && why.contains("install the worker of a release"), "{why}");
        let both = fits(|info, demands| {
            faulty(info);
            demands.takes_faults = true;
        });
        assert_eq!(both, Ok(()));
    }

    #[test]
    fn what_lists_only_known_gpus_is_part_of_an_earlier_answer() {
        let list = |uuids: &[&str]| -> Vec<DeviceInfo> {
            let device =
                |uuid: &&str| DeviceInfo { uuid: (*uuid).to_owned(), ..DeviceInfo::default() };
            uuids.iter().map(device).collect()
        };
        let is_part = |uuids: &[&str], earlier: &[&str]| {
            WorkerInfo { devices: list(uuids), ..WorkerInfo::default() }
                .lists_part_of(&list(earlier))
        };
        assert!(is_part(&["a", "c"], &["a", "b", "c"]) && is_part(&["b", "a"], &["a", "b"]));
        assert!(!is_part(&["a", "d"], &["a", "b", "c"]), "another GPU");
        assert!(!is_part(&["a"], &[]) && !is_part(&[], &["a"]));
    }

    #[test]
    fn a_slot_without_a_gpu_does_not_fit_unless_ranks_compute_on_the_cpu() {
        let why = fits(|_, demands| demands.slots = 3).expect_err("two GPUs for three slots");
        assert!(why.contains("2 of the 3 GPUs"), "{why}");
        let on_cpu = fits(|_, demands| {
            (demands.slots, demands.accelerator) = (3, "cpu".to_owned());
        });
        assert_eq!(on_cpu, Ok(()));
    }
}
