//! Every error with what the coordinator is told of it.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use ringmaster_agent::exit::Class::{Job, Node, Retry};

use super::*;
use crate::factory::{self, lookup};

fn io(kind: ErrorKind) -> io::Error {
    io::Error::from(kind)
}

fn of_code(code: &str) -> store::Error {
    let source = format!("<Error><Code>{code}</Code></Error>").into();
    store::Error::from(object_store::Error::Generic { store: "S3", source })
}

fn shard(url: &str, code: &str) -> Error {
    data::Error::Store { url: url.to_owned(), source: of_code(code) }.into()
}

fn listing(object: &str, code: &str) -> checkpoint::Error {
    let (object, source) = (object.to_owned(), of_code(code));
    checkpoint::Error::Store { action: "list", object, source }
}

fn missing_nccl() -> ffi::nccl::Error {
    let reason = "no such file".to_owned();
    ffi::library::Missing { library: "libnccl.so.2", reason, remedy: "install it" }.into()
}

fn torch_says(text: &str) -> Error {
    TchError::Torch(text.to_owned()).into()
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn weights(source: factory::Error) -> Error {
    Error::Weights { field: text("spec.model.pretrained"), source }
}

/// What a rank does before it joins a ring.
fn at_the_start() -> Vec<(Error, Class, &'static str, &'static str)> {
    let path = || "/run/manifest.json".into();
    let gone = Error::ReadManifest { path: path(), source: io(ErrorKind::NotFound) };
    let too_new = stored::Error::TooNew { kind: "TrainJob", found: 9, known: 3 };
    let no_gpu = Error::Device { device: text("GPU-1"), source: ffi::cuda::Error::NoDevice };
    let bytes = health::memory::Bytes;
    let memory = health::Error::Memory {
        node: text("node-7"),
        memory: text("host"),
        free: bytes(1),
        needed: bytes(2),
        parameters: 3,
    };
    let damaged =
        health::Error::Gpu { node: text("node-7"), gpu: text("GPU 0"), what: text("ECC") };
    let call = || ffi::driver::Error::Call { call: "cuInit", code: text("CUDA_ERROR_UNKNOWN") };
    let connect = agent::Error::Connect { path: path(), source: io(ErrorKind::ConnectionRefused) };
    let refused = coordinator::Error::Refused {
        call: "Join",
        code: tonic::Code::FailedPrecondition,
        message: text("no such seat"),
    };
    let listen =
        Error::Listen { address: text("10.0.0.1"), source: io(ErrorKind::AddrNotAvailable) };
    vec![
        (gone, Node, "read manifest", "file: NotFound"),
        (
            Error::Manifest { path: path(), source: too_new },
            Node,
            "read manifest",
            "manifest: too new",
        ),
        (Error::Fault { what: text("RINGMASTER_FAULT: at=x") }, Job, "start", "fault variable"),
        (
            Error::Signals { source: io(ErrorKind::InvalidInput) },
            Node,
            "start",
            "signals: InvalidInput",
        ),
        (
            Error::Thread { name: "signals", source: io(ErrorKind::WouldBlock) },
            Node,
            "start",
            "thread: WouldBlock",
        ),
        (no_gpu, Node, "device", "no device"),
        (Error::Gpu { ordinal: 0, source: call().into() }, Node, "device", "driver: call"),
        (Error::Nccl { source: missing_nccl() }, Node, "communicator", "NCCL: missing"),
        (
            Error::CommunicatorId { bytes: 0, expected: 128 },
            Job,
            "communicator",
            "id of another length",
        ),
        (memory.into(), Node, "health check", "memory"),
        (damaged.into(), Node, "device", "damaged"),
        (connect.into(), Retry, "connect agent", "socket: ConnectionRefused"),
        (refused.into(), Retry, "call coordinator", "refused: FailedPrecondition"),
        (listen, Node, "listen", "socket: AddrNotAvailable"),
        (
            collective::tcp::tls::Error::NoAuthority.into(),
            Node,
            "TLS between ranks",
            "no authority",
        ),
    ]
}

fn data_differs(minority: Vec<u32>, mine: bool) -> Error {
    Error::DataDiffers { found: text("ring rank 0: 3 samples in 1 shards"), minority, mine }
}

/// What a rank reads.
fn of_inputs() -> Vec<(Error, Class, &'static str, &'static str)> {
    let missing = |url: &str| Error::from(data::Error::Missing { url: text(url) });
    let config = || model::Error::Config { reason: text("width is 7") };
    let uri = |uri: &str, code: &str| Error::CheckpointFolder {
        uri: text(uri),
        source: listing(uri, code),
    };
    let none = |url: &str| Error::NoCheckpoint { url: text(url), what: text("none") };
    let cache =
        lookup::Error::Cache { path: "/cache/part".into(), source: io(ErrorKind::StorageFull) };
    let misfit = model::Error::Config { reason: text("no tower") };
    let format =
        ringmaster_inputs::text::Error::Format { path: "/t".into(), reason: text("no JSON") };
    let unusable =
        checkpoint::Error::Unusable { url: text("s3://r"), reason: text("no credentials") };
    vec![
        (missing("/data/a.tar"), Node, "open data", "data: missing"),
        (missing("file:///data/a.tar"), Node, "open data", "data: missing"),
        (missing("https://host/a.tar"), Job, "open data", "data: missing"),
        (shard("s3://data/a.tar", "AccessDenied"), Job, "open data", "data: no permission"),
        (shard("/data/a.tar", "AccessDenied"), Node, "open data", "data: no permission"),
        (shard("s3://data/a.tar", "SlowDown"), Retry, "open data", "data: throttled"),
        (
            data::Error::Thread { source: io(ErrorKind::WouldBlock) }.into(),
            Node,
            "read data",
            "thread: WouldBlock",
        ),
        (config().into(), Job, "build model", "model: configuration"),
        (
            crate::factory::tokenizer::Error::Text(format).into(),
            Job,
            "open tokenizer",
            "tokenizer: format",
        ),
        (listing("s3://runs", "NoSuchBucket").into(), Job, "open checkpoint", "store: no bucket"),
        (listing("s3://runs", "InternalError").into(), Retry, "open checkpoint", "store: failed"),
        (unusable.into(), Job, "open checkpoint", "unusable"),
        (uri("/runs", "AccessDenied"), Node, "write checkpoints", "store: no permission"),
        (uri("s3://runs", "AccessDenied"), Job, "write checkpoints", "store: no permission"),
        (none("/runs/job-1"), Node, "open checkpoint", "checkpoint: none"),
        (none("s3://runs/job-1"), Job, "open checkpoint", "checkpoint: none"),
        (
            Error::Checkpoint { what: text("no ln.bias") },
            Job,
            "load checkpoint",
            "checkpoint: does not fit",
        ),
        (data_differs(vec![1], true), Node, "compare data", "data: another copy"),
        (
            data_differs(vec![1], false),
            Retry,
            "compare data",
            "data: another rank has another copy",
        ),
        (data_differs(Vec::new(), false), Job, "compare data", "data: differs between nodes"),
        (
            Error::OtherData { what: text("/runs: another seed") },
            Job,
            "open checkpoint",
            "data: not what was read",
        ),
        (
            data::Error::TooManyCorrupt { count: 9, limit: 3, list: text("a") }.into(),
            Job,
            "read data",
            "data: too many corrupt",
        ),
        (data::Error::Replaced { url: text("/a.tar") }.into(), Job, "read data", "data: replaced"),
        (weights(cache.into()), Retry, "load weights", "cache: StorageFull"),
        (weights(misfit.into()), Job, "build model", "model: configuration"),
    ]
}

/// What befalls a rank that trains.
fn of_training() -> Vec<(Error, Class, &'static str, &'static str)> {
    let lost = collective::Error::PeerLost {
        peer: 1,
        operation: "barrier",
        sequence: 5,
        reason: text("closed by peer"),
    };
    let unsupported = loss::Error::Unsupported { what: text("a group of 3") };
    let full = report::Error::Io {
        doing: "write",
        path: "/runs".into(),
        source: io(ErrorKind::StorageFull),
    };
    let open = |source| eval::Error::Open { set: text("val"), source };
    let nowhere = data::Error::Missing { url: text("/data/val.tar") };
    vec![
        (Error::Superseded { what: text("g2.8") }, Retry, "run", "superseded"),
        (lost.into(), Retry, "collective", "ring: peer lost"),
        (unsupported.into(), Job, "train", "loss: unsupported"),
        (torch_says("CUDA out of memory. Tried"), Node, "train", "libtorch: out of memory"),
        (torch_says("CUDA error: unspecified launch failure"), Node, "device", "libtorch: CUDA"),
        (torch_says("The size of tensor a"), Retry, "train", "libtorch"),
        (Error::NotSaved { step: 3, what: text("away") }, Retry, "save", "not saved"),
        (open(nowhere).into(), Node, "open evaluation data", "data: missing"),
        (
            eval::Error::Empty { set: text("val"), samples: 3 }.into(),
            Job,
            "evaluate",
            "data: empty",
        ),
        (full.into(), Retry, "write run folder", "file: StorageFull"),
        (
            Error::NotFinite { step: 3, loss: 1.0, squared_norm: f64::NAN },
            Job,
            "train",
            "not finite",
        ),
        (
            Error::ReplicasDiffer { step: 3, lowest: 1.0, highest: 2.0, minority: vec![2] },
            Retry,
            "train",
            "gradients differ",
        ),
        (
            Error::WeightsDiffer { step: 3, minority: Vec::new() },
            Retry,
            "compare",
            "weights differ",
        ),
        (Error::Internal { what: text("state header") }, Retry, "run", "internal"),
    ]
}

fn table() -> Vec<(Error, Class, &'static str, &'static str)> {
    at_the_start().into_iter().chain(of_inputs()).chain(of_training()).collect()
}

#[test]
fn every_error_says_whose_fault_it_is_and_what_it_was_about() {
    for (error, class, operation, cause) in table() {
        let said = (error.class(), error.operation(), error.cause());
        assert_eq!(said, (class, operation, cause.to_owned()), "{error:?}");
    }
}

/// Names, paths and numbers would make one failure on two nodes look like two.
#[test]
fn a_cause_is_words_of_the_source_and_nothing_of_the_errors_text() {
    for (error, ..) in table() {
        let cause = error.cause();
        assert!(!cause.contains(['/', '\n', '"']) && !cause.contains("node-7"), "{cause}");
        assert!(!cause.chars().any(|letter| letter.is_ascii_digit()), "{cause}");
    }
}

/// The name of an error's variant. A new one does not compile here until it has a name and a line above.
fn variant(error: &Error) -> &'static str {
    match error {
        Error::ReadManifest { .. } => "ReadManifest",
        Error::Manifest { .. } => "Manifest",
        Error::Fault { .. } => "Fault",
        Error::Signals { .. } => "Signals",
        Error::Thread { .. } => "Thread",
        Error::Device { .. } => "Device",
        Error::Gpu { .. } => "Gpu",
        Error::Nccl { .. } => "Nccl",
        Error::CommunicatorId { .. } => "CommunicatorId",
        Error::Health(_) => "Health",
        Error::Control(_) => "Control",
        Error::Coordinator { .. } => "Coordinator",
        Error::Superseded { .. } => "Superseded",
        Error::Collective(_) => "Collective",
        Error::Tls(_) => "Tls",
        Error::Listen { .. } => "Listen",
        Error::Data(_) => "Data",
        Error::Model(_) => "Model",
        Error::Tokenizer(_) => "Tokenizer",
        Error::Loss(_) => "Loss",
        Error::Optimizer(_) => "Optimizer",
        Error::Store(_) => "Store",
        Error::CheckpointFolder { .. } => "CheckpointFolder",
        Error::NoCheckpoint { .. } => "NoCheckpoint",
        Error::Checkpoint { .. } => "Checkpoint",
        Error::Weights { .. } => "Weights",
        Error::NotSaved { .. } => "NotSaved",
        Error::Eval(_) => "Eval",
        Error::Report(_) => "Report",
        Error::NotFinite { .. } => "NotFinite",
        Error::ReplicasDiffer { .. } => "ReplicasDiffer",
        Error::WeightsDiffer { .. } => "WeightsDiffer",
        Error::DataDiffers { .. } => "DataDiffers",
        Error::OtherData { .. } => "OtherData",
        Error::Internal { .. } => "Internal",
    }
}

/// Variants of [`Error`]: as many as [`variant`] has arms.
const VARIANTS: usize = 35;

#[test]
fn the_table_has_every_variant() {
    let names: BTreeSet<&str> = table().iter().map(|(error, ..)| variant(error)).collect();
    assert_eq!(names.len(), VARIANTS, "{names:?}");
}

/// Wrong credentials and missing buckets were tried four times, and the job's reason ended with its restart
/// budget.
#[test]
fn what_a_store_refuses_is_the_jobs_fault_and_what_may_pass_is_not() {
    for (code, class) in [
        ("SignatureDoesNotMatch", Job),
        ("InvalidAccessKeyId", Job),
        ("AccessDenied", Job),
        ("NoSuchBucket", Job),
        ("NotImplemented", Job),
        ("SlowDown", Retry),
        ("InternalError", Retry),
        ("QuotaExceeded", Retry),
    ] {
        let store = Error::Store(listing("s3://runs", code));
        assert_eq!(
            (shard("s3://data/a.tar", code).class(), store.class()),
            (class, class),
            "{code}"
        );
    }
}
