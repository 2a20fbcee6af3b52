//! NVRTC: CUDA C++ to device code, at run time.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};

use super::library::{self, Missing, Wanted};

const LIBNVRTC: Wanted = Wanted {
    // Also among the names cudarc tries: once one is loaded, the linker finds it again by this name.
    names: &["libnvrtc.so.13"],
    folders: &["../../nvidia/cu13/lib", "../../nvidia/cuda_nvrtc/lib", "../../../../cuda/lib64"],
    remedy: "install PyTorch 2.11 for CUDA 13 and put its torch/lib into LD_LIBRARY_PATH \
             (or pip install nvidia-cuda-nvrtc and name its lib folder there)",
};

/// NVRTC opens it by name when it first compiles. The Python wheel has it beside itself but tells
/// the dynamic linker nothing about that.
const BUILTINS: &str = "libnvrtc-builtins.so.13.0";

/// Why device code could not be made.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no NVRTC.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A call failed.
    #[error("{call} failed: {code}")]
    Call {
        call: &'static str,
        /// NVRTC's name of the error.
        code: String,
    },
    /// The source does not compile: a mistake of this program, or a compiler it was not tried with.
    #[error("{program} does not compile for {architecture}: {log}")]
    Source { program: &'static str, architecture: String, log: String },
}

/// What to compile for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Machine code of one compute capability.
    Machine {
        /// Major times ten plus minor.
        capability: u32,
    },
    /// PTX, which the driver translates for this capability and all later ones.
    Ptx {
        /// As above.
        capability: u32,
    },
}

impl Target {
    /// Returns machine code for the device where the compiler knows it, else the newest PTX that
    /// the device can take.
    pub fn of_device((major, minor): (u32, u32), known: &[u32]) -> Self {
        let capability = major * 10 + minor;
        if known.contains(&capability) {
            return Self::Machine { capability };
        }
        let older = known.iter().copied().filter(|k| *k <= capability).max();
        Self::Ptx { capability: older.unwrap_or(capability) }
    }

    fn architecture(self) -> String {
        match self {
            Self::Machine { capability } => format!("sm_{capability}"),
            Self::Ptx { capability } => format!("compute_{capability}"),
        }
    }
}

/// Compiled device code.
#[derive(Debug, Clone)]
pub struct Code(Vec<u8>);

impl Code {
    /// A cubin, or PTX text with a terminating zero.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Opens NVRTC, once.
fn load() -> Result<(), Error> {
    static LOADED: OnceLock<Result<(), Missing>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        // Never closed: cudarc keeps what it finds in it for the process's life.
        std::mem::forget(library::open(&LIBNVRTC)?);
        if library::open_one(BUILTINS.as_ref()).map(std::mem::forget).is_err()
            && let Some(folder) = library::folder_of(&LIBNVRTC)
            && let Err(error) =
                library::open_one(folder.join(BUILTINS).as_os_str()).map(std::mem::forget)
        {
            // Not fatal: an NVRTC of another minor version has its builtins under another name.
            tracing::debug!(%error, "NVRTC's builtins are not beside it");
        }
        Ok(())
    });
    Ok(loaded.clone()?)
}

/// Returns the compute capabilities (major times ten plus minor) NVRTC makes machine code for.
///
/// # Errors
/// There is no NVRTC, or it fails.
pub fn known_capabilities() -> Result<Vec<u32>, Error> {
    load()?;
    let mut count = 0;
    // SAFETY: NVRTC is loaded; `count` is a local the call fills.
    check("nvrtcGetNumSupportedArchs", unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) })?;
    let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: the call writes exactly `count` numbers, for which there is room.
    check("nvrtcGetSupportedArchs", unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) })?;
    Ok(known.into_iter().filter_map(|k| u32::try_from(k).ok()).collect())
}

/// Compiles C++17 `source`, called `program` in messages.
///
/// # Errors
/// There is no NVRTC, or the source does not compile.
pub fn compile(program: &'static str, source: &str, target: Target) -> Result<Code, Error> {
    load()?;
    let text = |s: &str| CString::new(s).expect("sources and their names hold no zero byte");
    let (source, name) = (text(source), text(program));
    let handle = result::create_program(&source, Some(&name))
        .map_err(|e| Error::Call { call: "nvrtcCreateProgram", code: e.to_string() })?;
    let compiled = Program(handle).compile(program, target);
    drop(source);
    compiled
}

/// Owns NVRTC's handle.
struct Program(sys::nvrtcProgram);

impl Program {
    fn compile(self, program: &'static str, target: Target) -> Result<Code, Error> {
        let architecture = target.architecture();
        let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()];
        // SAFETY: the program was created and is destroyed only by `drop`.
        if let Err(error) = unsafe { result::compile_program(self.0, &options) } {
            // SAFETY: as above.
            let log = unsafe { result::get_program_log(self.0) }.map(|log| text_of(&log));
            let log = log.ok().filter(|log| !log.is_empty()).unwrap_or_else(|| error.to_string());
            return Err(Error::Source { program, architecture, log });
        }
        match target {
            Target::Machine { .. } => self.cubin(),
            Target::Ptx { .. } => {
                // SAFETY: as above; it has been compiled.
                let ptx = unsafe { result::get_ptx(self.0) }
                    .map_err(|e| Error::Call { call: "nvrtcGetPTX", code: e.to_string() })?;
                Ok(Code(ptx.into_iter().map(|c| c as u8).collect()))
            }
        }
    }

    fn cubin(&self) -> Result<Code, Error> {
        let mut size = 0;
        // SAFETY: the program is alive and compiled; `size` is a local the call fills.
        check("nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(self.0, &mut size) })?;
        let mut code = vec![0_u8; size];
        // SAFETY: the call writes exactly `size` bytes, for which there is room.
        check("nvrtcGetCUBIN", unsafe {
            sys::nvrtcGetCUBIN(self.0, code.as_mut_ptr().cast::<c_char>())
        })?;
        Ok(Code(code))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed here once.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn check(call: &'static str, result: sys::nvrtcResult) -> Result<(), Error> {
    result.result().map_err(|e| Error::Call { call, code: e.to_string() })
}

fn text_of(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_device_newer_than_the_compiler_gets_the_newest_ptx() {
        let known = [75, 80, 90, 100];
        assert_eq!(Target::of_device((9, 0), &known), Target::Machine { capability: 90 });
        assert_eq!(Target::of_device((10, 3), &known), Target::Ptx { capability: 100 });
        assert_eq!(Target::of_device((8, 6), &known), Target::Ptx { capability: 80 });
    }

    #[test]
    fn a_source_that_does_not_compile_is_reported_with_the_compilers_words() {
        let target = Target::Ptx { capability: 80 };
        let error = compile("broken.cu", "__global__ void f() { nonsense; }", target).unwrap_err();
        match error {
            Error::Source { log, .. } => assert!(log.contains("nonsense"), "{log}"),
            // No NVRTC here: then the message says how to get one.
            Error::Missing(missing) => {
                assert!(missing.to_string().contains("LD_LIBRARY_PATH"), "{missing}");
            }
            Error::Call { .. } => panic!("{error}"),
        }
    }
}
