//! Whether a machine is fit to train on, looked at once per process before its first step.
//!
//! A rank looks at its own memory and GPU when it starts ([`check_machine`]): what would surely end
//! the job later, or spoil it in silence, ends this process at once, with the node and the GPU in
//! the reason that it leaves, and counts as a fault of the node. What may only slow the job down is said and
//! nothing more: so it is with the links to the neighbours ([`links`]), which all ranks of a fresh
//! ring measure together. Survivors of a fault look at nothing again.

pub mod gpu;
pub mod links;
pub mod memory;

use tch::Device;

/// What a rank takes along from its check.
#[derive(Debug, Default)]
pub struct Machine {
    /// Takes note of the GPU's critical errors; none on the CPU, or without NVML.
    watch: Option<gpu::Watch>,
}

/// What is wrong with a machine.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state does not fit.
    #[error(
        "not enough {memory} memory on {node}: {free} free, and the training state takes {needed} \
         ({parameters} parameters with gradients and optimizer state); end what else runs there, or \
         use a smaller model"
    )]
    Memory {
        node: String,
        /// `host`, or which GPU's.
        memory: String,
        /// Bytes that can be had.
        free: memory::Bytes,
        /// Bytes that are needed.
        needed: memory::Bytes,
        parameters: u64,
    },
    /// The GPU's memory is damaged.
    #[error(
        "{gpu} of {node} is not fit for training: {what}; drain the node and replace or reset the \
         GPU"
    )]
    Gpu { node: String, gpu: String, what: String },
    /// The GPU does not answer.
    #[error("GPU {ordinal} of {node} cannot be examined")]
    Driver {
        node: String,
        /// As libtorch numbers it.
        ordinal: usize,
        source: crate::ffi::driver::Error,
    },
}

/// Looks at the memory and, where there is one, the GPU that a rank is about to use, and says in the
/// log what it found.
///
/// # Errors
/// What makes training there pointless.
pub fn check_machine(device: Device, demand: memory::Demand) -> Result<Machine, Error> {
    match device {
        Device::Cuda(ordinal) => gpu::check(ordinal, demand).map(|watch| Machine { watch }),
        _ => memory::check_host(demand).map(|()| Machine::default()),
    }
}

impl Machine {
    /// Says in the log which critical errors the GPU has reported since it was last asked.
    pub fn tell_news(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.tell_news();
        }
    }
}

/// This machine's name, for people.
fn node() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| "this node".to_owned())
}
