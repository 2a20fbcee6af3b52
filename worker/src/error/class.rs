//! Whose fault an error is, what the rank was about to do, and what kind of thing went wrong.
//!
//! The three together are what the coordinator takes for the identity of a failure: two nodes that report the
//! same one have met the same failure, and then it is the job's. So all of it is words of this source: no text
//! of an error, no path, no number. [`Class::Job`] is what every node would meet as far as this rank can tell,
//! [`Class::Node`] what another node may not, [`Class::Retry`] everything else.

use std::io;

use ringmaster_agent::exit::Class;
use ringmaster_checkpoint as checkpoint;
use ringmaster_data::{self as data, order};
use ringmaster_manifest::stored;
use ringmaster_store as store;
use tch::TchError;

use super::{Error, weights};
use crate::control::{agent, coordinator};
use crate::{collective, eval, ffi, health, loss, model, report};

/// What the coordinator is told of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) class: Class,
    pub(super) operation: &'static str,
    pub(super) cause: String,
}

impl Error {
    /// Returns whose fault it is, as far as this rank can tell.
    pub fn class(&self) -> Class {
        self.fault().class
    }

    /// Returns what this rank was about to do.
    pub fn operation(&self) -> &'static str {
        self.fault().operation
    }

    /// Returns what kind of thing went wrong.
    pub fn cause(&self) -> String {
        self.fault().cause
    }

    fn fault(&self) -> Fault {
        match self {
            Self::ReadManifest { source, .. } => node(READ_MANIFEST, of_io("file", source)),
            Self::Manifest { source, .. } => node(READ_MANIFEST, manifest(source)),
            Self::Fault { .. } => job(START, "fault variable"),
            Self::Signals { source } => node(START, of_io("signals", source)),
            Self::Thread { source, .. } => node(START, of_io("thread", source)),
            Self::Device { source, .. } => node(DEVICE, source.word()),
            Self::Gpu { source, .. } | Self::Nccl { source } => nccl(source),
            Self::CommunicatorId { .. } => job("communicator", "id of another length"),
            Self::Health(error) => health(error),
            Self::Control(error) => control(error),
            Self::Coordinator { source } => called(source),
            Self::Superseded { .. } => retry(RUN, "superseded"),
            Self::Collective(error) => ring(error),
            Self::Tls(error) => tls(error),
            Self::Listen { source, .. } => node("listen", of_io("socket", source)),
            Self::Data(error) => data("open data", error),
            Self::Model(error) => model(error),
            Self::Tokenizer(error) => weights::tokenizer(error),
            Self::Loss(error) => loss(error),
            Self::Optimizer(error) => torch(TRAIN, error),
            Self::Store(error) => checkpoint("open checkpoint", error),
            Self::CheckpointFolder { uri, source } => at(uri, "write checkpoints", source.cause()),
            Self::NoCheckpoint { url, .. } => at(url, "open checkpoint", "checkpoint: none"),
            Self::Checkpoint { .. } => job("load checkpoint", "checkpoint: does not fit"),
            Self::Weights { source, .. } => weights::fault(source),
            Self::NotSaved { .. } => retry("save", "not saved"),
            Self::Eval(error) => evaluation(error),
            Self::Report(error) => run_folder(error),
            Self::NotFinite { .. } => job(TRAIN, "not finite"),
            Self::ReplicasDiffer { .. } => retry(TRAIN, "gradients differ"),
            Self::WeightsDiffer { .. } => retry("compare", "weights differ"),
            Self::DataDiffers { minority, .. } if minority.is_empty() => {
                job(COMPARE_DATA, "data: differs between nodes")
            }
            Self::DataDiffers { mine: true, .. } => node(COMPARE_DATA, "data: another copy"),
            Self::DataDiffers { .. } => retry(COMPARE_DATA, "data: another rank has another copy"),
            Self::OtherData { .. } => job("open checkpoint", "data: not what was read"),
            Self::Internal { .. } => retry(RUN, "internal"),
        }
    }
}

const READ_MANIFEST: &str = "read manifest";
const START: &str = "start";
/// The agent takes the slot of a rank that ends with this out of service until its device is listed again.
const DEVICE: &str = "device";
const RUN: &str = "run";
const TRAIN: &str = "train";
const COMPARE_DATA: &str = "compare data";
const EVALUATE: &str = "evaluate";

pub(super) fn retry(operation: &'static str, cause: impl Into<String>) -> Fault {
    Fault { class: Class::Retry, operation, cause: cause.into() }
}

pub(super) fn node(operation: &'static str, cause: impl Into<String>) -> Fault {
    Fault { class: Class::Node, operation, cause: cause.into() }
}

pub(super) fn job(operation: &'static str, cause: impl Into<String>) -> Fault {
    Fault { class: Class::Job, operation, cause: cause.into() }
}

/// A fault of what lies at `url`: another node may have it where it is a path, and all see the same in a store.
pub(super) fn at(url: &str, operation: &'static str, cause: impl Into<String>) -> Fault {
    if checkpoint::is_local(url) { node(operation, cause) } else { job(operation, cause) }
}

/// Words for an error of the system.
pub(super) fn of_io(what: &str, error: &io::Error) -> String {
    format!("{what}: {:?}", error.kind())
}

fn manifest(error: &stored::Error) -> &'static str {
    match error {
        stored::Error::Json(_) => "manifest: form",
        stored::Error::Envelope { .. } => "manifest: envelope",
        stored::Error::UnknownKind { .. } => "manifest: unknown kind",
        stored::Error::TooNew { .. } => "manifest: too new",
        stored::Error::UnknownKey { .. } => "manifest: unknown key",
        stored::Error::MissingKey { .. } => "manifest: missing key",
        stored::Error::Inconsistent { .. } => "manifest: inconsistent",
    }
}

fn nccl(error: &ffi::nccl::Error) -> Fault {
    use ffi::nccl::Error as E;
    match error {
        E::Missing(_) => node("communicator", "NCCL: missing"),
        E::Function { .. } | E::Version { .. } => node("communicator", "NCCL: too old"),
        E::Call { .. } => node("communicator", "NCCL: call"),
        E::Driver(error) => driver(error),
    }
}

fn driver(error: &ffi::driver::Error) -> Fault {
    let cause = match error {
        ffi::driver::Error::Missing(_) => "driver: missing",
        ffi::driver::Error::Unusable { .. } => "driver: unusable",
        ffi::driver::Error::Call { .. } => "driver: call",
    };
    node(DEVICE, cause)
}

fn health(error: &health::Error) -> Fault {
    match error {
        health::Error::Memory { .. } => node("health check", "memory"),
        health::Error::Gpu { .. } => node(DEVICE, "damaged"),
        health::Error::Driver { source, .. } => driver(source),
    }
}

fn control(error: &agent::Error) -> Fault {
    match error {
        agent::Error::Connect { source, .. } => retry("connect agent", of_io("socket", source)),
        agent::Error::Thread { source, .. } => node(START, of_io("thread", source)),
    }
}

fn called(error: &coordinator::Error) -> Fault {
    use coordinator::Error as E;
    const CALL: &str = "call coordinator";
    match error {
        E::Superseded(_) | E::Interrupted => retry(RUN, "superseded"),
        E::Refused { code, .. } => retry(CALL, format!("refused: {code:?}")),
        E::Address(_) => retry(CALL, "address"),
        E::Thread { source } => node(START, of_io("thread", source)),
        E::Closed => retry(CALL, "closed"),
    }
}

fn ring(error: &collective::Error) -> Fault {
    use collective::Error as E;
    let cause = match error {
        E::PeerLost { .. } => "ring: peer lost",
        E::Aborted { .. } => "ring: aborted",
        E::Deadline { .. } => "ring: deadline",
        E::Mismatch { .. } => "ring: mismatch",
        E::Connect { .. } => "ring: not formed",
        E::Tensor { .. } => "ring: tensor",
    };
    retry("collective", cause)
}

fn tls(error: &collective::tcp::tls::Error) -> Fault {
    use collective::tcp::tls::Error as E;
    const TLS: &str = "TLS between ranks";
    match error {
        E::Read { source, .. } => node(TLS, of_io("file", source)),
        E::Pem { .. } => node(TLS, "PEM"),
        E::Unusable { .. } => node(TLS, "unusable"),
        E::NoAuthority => node(TLS, "no authority"),
    }
}

fn data(open: &'static str, error: &data::Error) -> Fault {
    use data::Error as E;
    const READ: &str = "read data";
    match error {
        E::Url { .. } => job(open, "data: URL"),
        E::Settings { .. } => job(open, "data: settings"),
        E::Column { .. } => job(open, "data: column"),
        E::Unreadable { .. } | E::NoParquet { .. } | E::Parquet { .. } => job(open, "data: form"),
        E::Unpack { source, .. } => node(open, of_io("unpack", source)),
        E::Missing { url } => at(url, open, "data: missing"),
        E::Store { url, source } | E::Read { url, source, .. } => {
            stored_at(url, open, "data", source.kind)
        }
        E::Replaced { .. } => job(READ, "data: replaced"),
        E::Empty { .. } | E::NoSamples { .. } => job(open, "data: empty"),
        E::Order(order::Error::TooSmall { .. } | order::Error::FewRows { .. }) => {
            job(open, "data: too small")
        }
        E::Order(_) => job(open, "data: order"),
        E::TooManyCorrupt { .. } => job(READ, "data: too many corrupt"),
        E::NoReplacement { .. } => job(READ, "data: no replacement"),
        E::Reader { .. } => retry(READ, "data: reader"),
        E::Thread { source } => node(READ, of_io("thread", source)),
    }
}

/// A store's answer about `url`: refused for good, or no more than trouble.
fn stored_at(url: &str, operation: &'static str, what: &str, kind: store::Kind) -> Fault {
    let cause = format!("{what}: {}", kind.word());
    if kind.is_mistake() || kind == store::Kind::Missing {
        at(url, operation, cause)
    } else {
        retry(operation, cause)
    }
}

/// What reading checkpoints or writing them meets.
pub(super) fn checkpoint(operation: &'static str, error: &checkpoint::Error) -> Fault {
    use checkpoint::Error as E;
    use io::ErrorKind::{NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    let cause = error.cause();
    match error {
        E::Unusable { .. } => job(operation, cause),
        // Retention may have been faster; what is chosen next time is there.
        E::Store { source, .. } if source.kind == store::Kind::Missing => retry(operation, cause),
        E::Store { object, source, .. } => stored_at(object, operation, "store", source.kind),
        E::Io { source, .. } => match source.kind() {
            NotADirectory | PermissionDenied | ReadOnlyFilesystem => node(operation, cause),
            _ => retry(operation, cause),
        },
        // A newer worker reads it.
        E::Version { .. } => node(operation, cause),
        E::Runtime { .. } => node(operation, cause),
        _ => retry(operation, cause),
    }
}

pub(super) fn model(error: &model::Error) -> Fault {
    use model::Error as E;
    match error {
        E::Config { .. } => job("build model", "model: configuration"),
        E::InputShape { .. } | E::Rows { .. } => job(TRAIN, "model: input"),
        E::Token { .. } => job(TRAIN, "model: token"),
        E::OnlyPadding { .. } => job(TRAIN, "model: only padding"),
        E::Backward { source, .. } => torch(TRAIN, source),
    }
}

fn loss(error: &loss::Error) -> Fault {
    use loss::cuda::Error as Cuda;
    match error {
        loss::Error::Collective(error) => ring(error),
        loss::Error::Tensor(error) | loss::Error::Cuda(Cuda::Torch(error)) => torch(TRAIN, error),
        loss::Error::Cuda(Cuda::Driver(error)) => driver(error),
        loss::Error::Cuda(Cuda::Compiler(_)) => node("compile kernels", "compiler"),
        loss::Error::Cuda(Cuda::NotCuda { .. } | Cuda::Tensor { .. }) => {
            retry(TRAIN, "loss: tensors")
        }
        loss::Error::Shape { .. } => retry(TRAIN, "loss: shapes"),
        loss::Error::Unsupported { .. } => job(TRAIN, "loss: unsupported"),
    }
}

/// libtorch says in a text only what went wrong, so this is the one place that reads one.
fn torch(operation: &'static str, error: &TchError) -> Fault {
    let text = error.to_string();
    let of_memory = ["out of memory", "can't allocate memory", "ALLOC_FAILED"];
    if of_memory.iter().any(|words| text.contains(words)) {
        node(operation, "libtorch: out of memory")
    } else if text.contains("CUDA error") {
        node(DEVICE, "libtorch: CUDA")
    } else {
        retry(operation, "libtorch")
    }
}

fn evaluation(error: &eval::Error) -> Fault {
    use data::SampleError;
    use eval::Error as E;
    match error {
        E::Open { source, .. } => data("open evaluation data", source),
        E::Read { source: SampleError::Store(error), .. } => data(EVALUATE, error),
        E::Read { source: SampleError::Corrupt { .. }, .. } => job(EVALUATE, "data: corrupt"),
        E::Empty { .. } => job(EVALUATE, "data: empty"),
        E::Model { source, .. } => model(source),
        E::Collective(error) => ring(error),
        E::Tensor { source, .. } => torch(EVALUATE, source),
        E::Thread(source) => node(EVALUATE, of_io("thread", source)),
    }
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

fn run_folder(error: &report::Error) -> Fault {
    const FOLDER: &str = "write run folder";
    match error {
        // Room may be made.
        report::Error::Io { source, .. } if is_full(source) => retry(FOLDER, of_io("file", source)),
        report::Error::Io { source, .. } => node(FOLDER, of_io("file", source)),
        report::Error::Superseded { .. } => retry(FOLDER, "superseded"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "class_tests.rs"]
mod tests;
