//! NCCL: the library's functions, and a communicator that one thread owns.
//!
//! cudarc's types, but not its loader: that looks for `libnccl.so` and never for `libnccl.so.2`, the
//! only name the Python wheels ship, and it cannot be helped from inside the process: an already
//! loaded library is found again only under the name it calls itself (`libnccl.so.2`), and changes
//! of `LD_LIBRARY_PATH` after the start are not seen. So the few functions that are used are looked
//! up here, once, by the names of `nccl.h`.

mod api;
mod communicator;

use std::ffi::c_int;

use cudarc::nccl::sys;
pub use cudarc::nccl::sys::{ncclDataType_t as DataType, ncclRedOp_t as RedOp};

use self::api::Api;
pub use self::communicator::Communicator;
use super::library::Missing;

/// `nccl.h` writes this into every configuration.
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// The version whose configuration structure cudarc's feature `nccl-02028` declares. NCCL reads what
/// it knows of it, older ones less, newer ones fill in the rest.
const CONFIG_VERSION: u32 = 22_800;
/// `NCCL_CONFIG_UNDEF_INT`: let NCCL choose.
const UNDEFINED: c_int = c_int::MIN;

/// Why NCCL did not do what was asked.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no NCCL.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// It lacks a function.
    #[error(
        "the libnccl that was found has no {name}; ringmaster needs NCCL 2.18 or newer, PyTorch 2.11 brings 2.28"
    )]
    Function { name: &'static str },
    /// It is too old.
    #[error("NCCL is {}.{}, but must be 2.18 or newer; PyTorch 2.11 brings 2.28", .version / 10_000, .version / 100 % 100)]
    Version {
        /// As `ncclGetVersion` gives it.
        version: c_int,
    },
    /// A call failed, at once or later.
    #[error("{call}: {code}{}{detail}", if .detail.is_empty() { "" } else { ": " })]
    Call {
        /// The function, or `communicator` for what NCCL reports by itself.
        call: &'static str,
        /// NCCL's name of the error.
        code: String,
        /// NCCL's newest message about an error.
        detail: String,
    },
    /// The driver failed.
    #[error(transparent)]
    Driver(#[from] super::driver::Error),
}

/// Returns NCCL's version as (major, minor, patch).
///
/// # Errors
/// There is no usable NCCL; says what to do.
pub fn version() -> Result<(u32, u32, u32), Error> {
    let version = Api::get()?.version.unsigned_abs();
    Ok((version / 10_000, version / 100 % 100, version % 100))
}

/// What the ranks of a communicator need to find one another.
#[derive(Clone, PartialEq, Eq)]
pub struct UniqueId([u8; Self::LEN]);

impl UniqueId {
    /// Bytes of an id.
    pub const LEN: usize = 128;

    /// Makes a new one: this process then listens for the other ranks, at an address of
    /// `NCCL_SOCKET_IFNAME` if that is set. Needs no GPU.
    ///
    /// # Errors
    /// There is no usable NCCL, or it finds no network interface.
    pub fn create() -> Result<Self, Error> {
        let api = Api::get()?;
        let mut id = sys::ncclUniqueId { internal: [0; Self::LEN] };
        // SAFETY: the call fills the local it is given.
        let result = unsafe { (api.get_unique_id)(&mut id) };
        api.check("ncclGetUniqueId", result, std::ptr::null_mut())?;
        Ok(Self(id.internal.map(|c| c as u8)))
    }

    /// Reads one that came over the network; none when the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Returns the bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for UniqueId {
    // Whoever knows it can join the communicator.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UniqueId(…)")
    }
}

/// Returns a configuration in which NCCL chooses everything, and no call blocks.
fn non_blocking() -> sys::ncclConfig_t {
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: std::ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_the_one_nccl_h_2_28_initialises() {
        let config = non_blocking();
        // 8 + 6·4 bytes, a pointer, 2·4, a pointer, 6·4: what a C compiler makes of nccl.h 2.28.9.
        assert_eq!(config.size, 80);
        assert_eq!(std::mem::offset_of!(sys::ncclConfig_t, blocking), 16);
        assert_eq!(std::mem::offset_of!(sys::ncclConfig_t, netName), 32);
        assert_eq!(std::mem::offset_of!(sys::ncclConfig_t, commName), 48);
        assert_eq!((config.magic, config.version), (0xcafe_beef, 22_800));
        assert_eq!((config.blocking, config.minCTAs), (0, i32::MIN));
        assert_eq!(size_of::<sys::ncclUniqueId>(), UniqueId::LEN);
    }

    #[test]
    fn an_id_survives_the_network_and_another_length_is_refused() {
        let id = UniqueId([7; UniqueId::LEN]);
        assert_eq!(UniqueId::from_bytes(id.as_bytes()), Some(id.clone()));
        assert_eq!(UniqueId::from_bytes(&[7; 127]), None);
        assert_eq!(format!("{id:?}"), "UniqueId(…)");
    }

    #[test]
    fn every_entry_works_or_says_how_to_get_nccl() {
        match (version(), UniqueId::create()) {
            (Ok(version), Ok(id)) => {
                assert!(version >= (2, 18, 0), "{version:?}");
                assert_ne!(id, UniqueId::create().unwrap(), "ids are never used twice");
            }
            (Err(error), Err(again)) => {
                let text = error.to_string();
                assert!(text.starts_with("cannot open libnccl.so.2 ("), "{text}");
                assert!(text.contains("LD_LIBRARY_PATH"), "{text}");
                assert_eq!(text, again.to_string());
            }
            other => panic!("{other:?}"),
        }
    }
}
