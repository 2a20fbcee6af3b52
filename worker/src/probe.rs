//! `ringmaster-worker probe`: what this worker is and which GPUs it sees, for its agent and for people.

use std::fmt::Write as _;

use ringmaster_agent::{DeviceInfo, FAULTS, WorkerInfo};
use ringmaster_manifest::spec::Accelerator;
use ringmaster_proto::limits;

use crate::ffi::{self, devices};

/// Bytes in a GiB.
const GIB: f64 = (1_u64 << 30) as f64;

/// Returns what this worker is, with the GPUs that ranks would use. That it can be asked shows that its
/// libraries load. For the CPU no driver is touched.
///
/// # Errors
/// With [`Accelerator::Cuda`]: why ranks could not use a GPU.
pub fn probe(accelerator: Accelerator) -> Result<WorkerInfo, String> {
    let mut gpus = Vec::new();
    if accelerator == Accelerator::Cuda {
        ffi::cuda::device(accelerator, 0).map_err(|error| error.to_string())?;
        gpus = visible()?;
    }
    let features = if cfg!(faults) { vec![FAULTS.to_owned()] } else { Vec::new() };
    Ok(WorkerInfo {
        version: env!("RINGMASTER_VERSION").to_owned(),
        build_id: env!("RINGMASTER_BUILD_ID").to_owned(),
        features,
        protocol: limits::RANK_PROTOCOL,
        libtorch: ffi::LIBTORCH.to_owned(),
        devices: gpus,
    })
}

fn visible() -> Result<Vec<DeviceInfo>, String> {
    let gpus = devices::visible().map_err(|error| error.to_string())?;
    let described = gpus.into_iter().map(|devices::Gpu { uuid, name, memory_bytes }| DeviceInfo {
        uuid,
        name,
        memory_bytes,
    });
    Ok(described.collect())
}

/// Describes this worker and the GPUs it sees, or why it sees none, for people.
pub fn describe() -> Result<String, String> {
    let info = probe(Accelerator::Cpu)?;
    Ok(match visible() {
        Ok(devices) => in_words(&WorkerInfo { devices, ..info }),
        Err(why) => format!("{}no GPU: {why}\n", in_words(&info)),
    })
}

fn in_words(info: &WorkerInfo) -> String {
    let mut text = format!("ringmaster-worker {}\nlibtorch {}\n", info.version, info.libtorch);
    for (local_rank, device) in info.devices.iter().enumerate() {
        let memory = device.memory_bytes as f64 / GIB;
        // Writing to a String cannot fail.
        let _ =
            writeln!(text, "GPU {local_rank}  {}  {memory:.0} GiB  {}", device.name, device.uuid);
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_says_its_build_its_features_and_its_libtorch() {
        let info = probe(Accelerator::Cpu).unwrap();
        assert!(info.version.contains(&format!("(build {})", info.build_id)), "{info:?}");
        assert_eq!(info.features.contains(&FAULTS.to_owned()), cfg!(faults));
        assert_eq!((info.protocol, info.libtorch.as_str()), (limits::RANK_PROTOCOL, "2.11"));
    }

    #[test]
    fn people_read_one_line_per_gpu() {
        let mut info = WorkerInfo { version: "1 (build 2)".into(), ..WorkerInfo::default() };
        info.libtorch = "2.11".into();
        assert_eq!(in_words(&info), "ringmaster-worker 1 (build 2)\nlibtorch 2.11\n");
        info.devices.push(DeviceInfo {
            uuid: "GPU-1".into(),
            name: "NVIDIA H200".into(),
            memory_bytes: 141 << 30,
        });
        assert!(in_words(&info).ends_with("GPU 0  NVIDIA H200  141 GiB  GPU-1\n"));
    }
}
