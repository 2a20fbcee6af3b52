//! Which GPUs this process sees, without making a context on any.

use cudarc::driver::sys;

use super::driver::{Error, check, load};

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// The card's own name.
    pub uuid: String,
    /// The model's name.
    pub name: String,
    /// Device memory in bytes.
    pub memory_bytes: u64,
}

/// Bytes of a device's name that the driver may fill.
const NAME_BYTES: usize = 256;

/// Returns the GPUs in the order of their ordinals, which is that of local ranks.
///
/// `CUDA_VISIBLE_DEVICES` decides, as for libtorch.
///
/// # Errors
/// There is no driver, it shows no GPU, or it fails.
pub fn visible() -> Result<Vec<Gpu>, Error> {
    load()?;
    let mut count = 0;
    // SAFETY: the driver is initialised; `count` is a local the call fills.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    (0..count).map(device).collect()
}

fn device(ordinal: i32) -> Result<Gpu, Error> {
    let mut device = 0;
    // SAFETY: the driver is initialised; `device` is a local the call fills.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal) })?;
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: the device came from cuDeviceGet; `uuid` is a local the call fills.
    check("cuDeviceGetUuid", unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, device) })?;
    let mut name = [0_u8; NAME_BYTES];
    // SAFETY: as above; `name` has as many bytes as are named.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr().cast(), NAME_BYTES as i32, device)
    })?;
    let mut bytes = 0;
    // SAFETY: as above; `bytes` is a local the call fills.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut bytes, device) })?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
    let name = String::from_utf8_lossy(&name[..end]).into_owned();
    Ok(Gpu {
        uuid: in_words(uuid.bytes.map(|byte| byte as u8), &name),
        name,
        memory_bytes: bytes as u64,
    })
}

/// Writes a UUID as `nvidia-smi -L` and CUDA_VISIBLE_DEVICES do: that of an instance of a MIG card, which has
/// "MIG" and its profile in its name, begins otherwise.
fn in_words(uuid: [u8; 16], name: &str) -> String {
    let kind = if name.contains(" MIG ") { "MIG" } else { "GPU" };
    let digits = hex::encode(uuid);
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
    format!("{kind}-{}", parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_nvidia_smi_writes_it() {
        let bytes = std::array::from_fn(|n| n as u8 * 17);
        let digits = "00112233-4455-6677-8899-aabbccddeeff";
        assert_eq!(in_words(bytes, "NVIDIA H100 80GB HBM3"), format!("GPU-{digits}"));
        let instance = "NVIDIA H100 80GB HBM3 MIG 1g.10gb";
        assert_eq!(in_words(bytes, instance), format!("MIG-{digits}"));
    }

    #[test]
    fn a_machine_without_a_driver_says_so() {
        // A machine with a GPU lists it.
        match visible() {
            Ok(devices) => assert!(devices.iter().all(|device| device.uuid.len() == 40)),
            Err(error) => assert!(error.to_string().contains("nvidia-smi"), "{error}"),
        }
    }
}
