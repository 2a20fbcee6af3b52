//! NVML, the library behind nvidia-smi: what a GPU's driver knows of its damage.
//!
//! It is opened at run time and belongs to the driver. Whatever a card does not keep count of (most
//! that are not made for data centres have no ECC) is none.
//!
//! Not nvml-wrapper: its 0.13.0 has no call for remapped rows, by which cards since the A100 tell of damaged
//! memory. They would be asked through its raw functions, with the same unsafe code as here.

use std::ffi::{CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use libloading::os::unix::Library;

use super::library::{self, Missing, Wanted};

const LIBNVML: Wanted = Wanted {
    names: &["libnvidia-ml.so.1"],
    folders: &[],
    remedy: "install NVIDIA's driver with its tools (nvidia-smi must work)",
};

/// `NVML_SUCCESS`.
const SUCCESS: Code = 0;
/// `NVML_ERROR_NOT_SUPPORTED`.
const NOT_SUPPORTED: Code = 3;
/// `NVML_ERROR_TIMEOUT`.
const TIMEOUT: Code = 10;
/// `NVML_MEMORY_ERROR_TYPE_UNCORRECTED`.
const UNCORRECTED: c_int = 1;
/// `NVML_VOLATILE_ECC`: since the driver was loaded.
const VOLATILE: c_int = 0;
/// `nvmlEventTypeXidCriticalError`.
const XID: c_ulonglong = 8;
/// `NVML_DEVICE_UUID_V2_BUFFER_SIZE`.
const UUID_BYTES: usize = 96;

/// `nvmlReturn_t` as a plain number: a newer driver may return one that is not known here.
type Code = c_uint;
type Handle = *mut c_void;

/// Why NVML did not answer.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no NVML.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// It has no function of this name.
    #[error("NVML has no {name}; update NVIDIA's driver")]
    Function { name: &'static str },
    /// A call failed.
    #[error("{call} failed: nvmlReturn_t {code}")]
    Call { call: &'static str, code: u32 },
}

/// The functions of `nvml.h` that are used.
struct Api {
    handle_by_pci: unsafe extern "C" fn(*const c_char, *mut Handle) -> Code,
    uuid: unsafe extern "C" fn(Handle, *mut c_char, c_uint) -> Code,
    total_ecc_errors: unsafe extern "C" fn(Handle, c_int, c_int, *mut c_ulonglong) -> Code,
    retired_pages_pending: unsafe extern "C" fn(Handle, *mut c_int) -> Code,
    remapped_rows:
        unsafe extern "C" fn(Handle, *mut c_uint, *mut c_uint, *mut c_uint, *mut c_uint) -> Code,
    event_set_create: unsafe extern "C" fn(*mut Handle) -> Code,
    event_set_free: unsafe extern "C" fn(Handle) -> Code,
    register_events: unsafe extern "C" fn(Handle, c_ulonglong, Handle) -> Code,
    event_set_wait: unsafe extern "C" fn(Handle, *mut Event, c_uint) -> Code,
}

/// `nvmlEventData_t`.
#[repr(C)]
struct Event {
    device: Handle,
    kind: c_ulonglong,
    data: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

impl Api {
    /// Opens NVML, looks the functions up and initialises it, once.
    fn get() -> Result<&'static Self, Error> {
        static LOADED: OnceLock<Result<Api, Error>> = OnceLock::new();
        LOADED.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Self, Error> {
        let library = library::open(&LIBNVML)?;
        /// Looks a function up and gives it the type its field has.
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: the field's type is the function's declaration in nvml.h; functions of a
                // given name and version suffix never change theirs.
                *unsafe { library.get($name) }.map_err(|_| Error::Function { name: $name })?
            }};
        }
        let init: unsafe extern "C" fn() -> Code = function!("nvmlInit_v2");
        let api = Self {
            handle_by_pci: function!("nvmlDeviceGetHandleByPciBusId_v2"),
            uuid: function!("nvmlDeviceGetUUID"),
            total_ecc_errors: function!("nvmlDeviceGetTotalEccErrors"),
            retired_pages_pending: function!("nvmlDeviceGetRetiredPagesPendingStatus"),
            remapped_rows: function!("nvmlDeviceGetRemappedRows"),
            event_set_create: function!("nvmlEventSetCreate"),
            event_set_free: function!("nvmlEventSetFree"),
            register_events: function!("nvmlDeviceRegisterEvents"),
            event_set_wait: function!("nvmlEventSetWait_v2"),
        };
        // SAFETY: takes nothing; it is never shut down, so handles stay valid.
        check("nvmlInit", unsafe { init() })?;
        // The functions stay callable: the library is never closed.
        std::mem::forget::<Library>(library);
        Ok(api)
    }
}

/// Makes an error of everything but success.
fn check(call: &'static str, code: Code) -> Result<(), Error> {
    match code {
        SUCCESS => Ok(()),
        code => Err(Error::Call { call, code }),
    }
}

/// As [`check`]; false for what this card does not offer.
fn supported(call: &'static str, code: Code) -> Result<bool, Error> {
    match code {
        NOT_SUPPORTED => Ok(false),
        code => check(call, code).map(|()| true),
    }
}

/// A GPU.
#[derive(Debug, Clone, Copy)]
pub struct Device(Handle);

// SAFETY: a handle is a name that NVML gives out for good; its functions may be called from any
// thread at any time.
unsafe impl Send for Device {}

/// What the driver knows of a GPU's memory; none where the card does not keep count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// Errors that ECC found and could not correct since the driver was loaded.
    pub uncorrected_errors: Option<u64>,
    /// Whether memory pages wait for a reset to be taken out of use.
    pub pages_pending: Option<bool>,
    /// Whether memory rows wait for a reset to be replaced by spare ones.
    pub rows_pending: Option<bool>,
    /// Whether a damaged row could not be replaced.
    pub remap_failed: Option<bool>,
}

impl Device {
    /// Returns the GPU at a PCI address as the CUDA driver writes it (`0000:17:00.0`).
    ///
    /// # Errors
    /// There is no NVML, or no such GPU.
    pub fn at(pci: &str) -> Result<Self, Error> {
        let api = Api::get()?;
        let pci = CString::new(pci).unwrap_or_default();
        let mut handle = std::ptr::null_mut();
        // SAFETY: NVML is initialised; `pci` ends with a zero and `handle` is a local it fills.
        check("nvmlDeviceGetHandleByPciBusId", unsafe {
            (api.handle_by_pci)(pci.as_ptr(), &mut handle)
        })?;
        Ok(Self(handle))
    }

    /// Returns the GPU's own name, which moves with the card.
    ///
    /// # Errors
    /// NVML's.
    pub fn uuid(self) -> Result<String, Error> {
        let mut text = [0_u8; UUID_BYTES];
        let room = text.len() as c_uint;
        // SAFETY: the handle came from NVML, and `text` has as many bytes as are named.
        check("nvmlDeviceGetUUID", unsafe {
            (Api::get()?.uuid)(self.0, text.as_mut_ptr().cast(), room)
        })?;
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    /// Returns what the driver knows of its memory.
    ///
    /// # Errors
    /// NVML's: the GPU has fallen off the bus, say.
    pub fn condition(self) -> Result<Condition, Error> {
        let api = Api::get()?;
        let mut condition = Condition::default();
        let mut errors = 0;
        // SAFETY: the handle came from NVML; `errors` is a local the call fills.
        let code = unsafe { (api.total_ecc_errors)(self.0, UNCORRECTED, VOLATILE, &mut errors) };
        if supported("nvmlDeviceGetTotalEccErrors", code)? {
            condition.uncorrected_errors = Some(errors);
        }
        let mut pending = 0;
        // SAFETY: as above.
        let code = unsafe { (api.retired_pages_pending)(self.0, &mut pending) };
        if supported("nvmlDeviceGetRetiredPagesPendingStatus", code)? {
            condition.pages_pending = Some(pending != 0);
        }
        let [mut corrected, mut uncorrected, mut pending, mut failed] = [0; 4];
        // SAFETY: as above, with four locals.
        let code = unsafe {
            let counts = (&mut corrected, &mut uncorrected);
            (api.remapped_rows)(self.0, counts.0, counts.1, &mut pending, &mut failed)
        };
        if supported("nvmlDeviceGetRemappedRows", code)? {
            condition.rows_pending = Some(pending != 0);
            condition.remap_failed = Some(failed != 0);
        }
        Ok(condition)
    }

    /// Begins to take note of this GPU's critical errors; none where the card reports none.
    ///
    /// # Errors
    /// NVML's.
    pub fn watch(self) -> Result<Option<Watch>, Error> {
        let api = Api::get()?;
        let mut set = std::ptr::null_mut();
        // SAFETY: NVML is initialised; `set` is a local the call fills.
        check("nvmlEventSetCreate", unsafe { (api.event_set_create)(&mut set) })?;
        let watch = Watch(set);
        // SAFETY: handle and set came from NVML, and the set is freed by `watch` only.
        let code = unsafe { (api.register_events)(self.0, XID, set) };
        Ok(supported("nvmlDeviceRegisterEvents", code)?.then_some(watch))
    }
}

/// Critical errors (Xid) of a GPU since this was made.
#[derive(Debug)]
pub struct Watch(Handle);

// SAFETY: an event set is not tied to a thread.
unsafe impl Send for Watch {}

impl Watch {
    /// Returns the numbers of the errors there were since the last call, without waiting.
    ///
    /// # Errors
    /// NVML's.
    pub fn news(&mut self) -> Result<Vec<u64>, Error> {
        let api = Api::get()?;
        let mut numbers = Vec::new();
        loop {
            let mut event = Event {
                device: std::ptr::null_mut(),
                kind: 0,
                data: 0,
                gpu_instance: 0,
                compute_instance: 0,
            };
            // SAFETY: the set is alive and `event` is a local the call fills; zero: do not wait.
            match unsafe { (api.event_set_wait)(self.0, &mut event, 0) } {
                TIMEOUT => return Ok(numbers),
                code => check("nvmlEventSetWait", code)?,
            }
            if event.kind == XID {
                numbers.push(event.data);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Ok(api) = Api::get() {
            // SAFETY: this is the only owner.
            let _ = unsafe { (api.event_set_free)(self.0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_nvml_says_what_to_install() {
        // A machine with a driver has nothing to say here.
        if let Err(error @ Error::Missing(_)) = Device::at("0000:00:00.0") {
            let text = error.to_string();
            assert!(text.contains("libnvidia-ml.so.1") && text.contains("nvidia-smi"), "{text}");
        }
    }
}
