//! What can go wrong in a command, and the exit code each failure gets.

use std::path::PathBuf;

use ringmaster_proto::address;
use ringmaster_proto::status::{details, was_cut_off};
use ringmaster_proto::v1::ManifestMistakes;
use ringmaster_words::did_you_mean;

/// Exit codes of the `ringmaster` command, as documented in `ringmaster help`.
pub(crate) mod exit_code {
    /// The job failed, or something unforeseen happened.
    pub(crate) const FAILED: u8 = 1;
    /// The command line, the manifest or the data it names is wrong; nothing was started.
    pub(crate) const REFUSED: u8 = 2;
    /// The coordinator cannot be reached.
    pub(crate) const UNREACHABLE: u8 = 3;
    /// The coordinator knows no such job.
    pub(crate) const NOT_FOUND: u8 = 4;
    /// The coordinator refuses this agent, and would again (EX_CONFIG).
    pub(crate) const HOPELESS: u8 = 78;
    /// The job was cancelled, or the user interrupted the command.
    pub(crate) const CANCELLED: u8 = 130;
}

/// A command that did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The manifest file cannot be read.
    #[error("cannot read the manifest {}", path.display())]
    ReadManifest { path: PathBuf, source: std::io::Error },
    /// The manifest has mistakes; the source lists all of them with their places.
    #[error("the manifest {} is refused; nothing was started\n{mistakes}", path.display())]
    Manifest { path: PathBuf, mistakes: String },
    /// The folder of further model configurations is not usable.
    #[error("the models that RINGMASTER_MODELS names cannot be used")]
    Models(#[source] ringmaster_manifest::catalogue::Error),
    /// No model has this name.
    #[error(
        "no model is called {name:?} (`ringmaster models` lists all){}",
        did_you_mean("; ", nearest)
    )]
    UnknownModel { name: String, nearest: Vec<String> },
    /// A flag's value does not fit the job.
    #[error("{flag} {value} does not fit: {constraint}; {remedy}")]
    Flag { flag: &'static str, value: String, constraint: String, remedy: String },
    /// Blocks of the data order do not fit the memory that the manifest gives them.
    #[error(
        "spec.data.memory is {memory}, and the samples out of which a batch is drawn take {needed} of blocks on each of \
         {ranks} ranks: they would be read one by one, with many more requests; raise it, lower data.pool_samples \
         (another order), or use more ranks"
    )]
    Memory { memory: String, needed: String, ranks: u64 },
    /// Files that the manifest names are not there.
    #[error("{}", missing_data(.missing))]
    MissingData { missing: Vec<MissingFile> },
    /// A store that this machine's settings do not lead to.
    #[error("{field}: {url} cannot be used: {reason}; nothing was started")]
    Store { field: String, url: String, reason: String },
    /// `--resume` names nothing that could be resumed.
    #[error("cannot resume from {wanted:?}: {reason}; {remedy}")]
    Resume { wanted: String, reason: String, remedy: String },
    /// What `--resume` names was trained as something else.
    #[error("cannot resume from {url}: {conflict}; nothing was started")]
    ResumeConflict { url: String, conflict: String },
    /// A listener would be open to a network without TLS.
    #[error(
        "{flag} {address} is not a loopback address, and this version has no TLS: whoever reaches \
         it could run jobs and read logs; listen on 127.0.0.1, or pass --insecure on an isolated \
         network"
    )]
    Insecure { flag: &'static str, address: std::net::SocketAddr },
    /// No coordinator can be where it was said to be.
    #[error("the coordinator's address (--coordinator or RINGMASTER_COORDINATOR) cannot be used")]
    CoordinatorAddress(#[source] address::Error),
    /// No coordinator answers.
    #[error(
        "no coordinator answers at {url} ({why}); start one with `ringmaster coordinator`, or name \
         another by --coordinator or RINGMASTER_COORDINATOR"
    )]
    Unreachable { url: String, why: String },
    /// Somebody else listens there.
    #[error(
        "what answers at {url} is no coordinator for commands ({why}); name the address that \
         `ringmaster coordinator --listen` has (port 7070 unless it is told otherwise)"
    )]
    NoCoordinator { url: String, why: String },
    /// The coordinator does not know what was asked for.
    #[error("{message}; `ringmaster ls --all` lists every job, `ringmaster nodes` every node")]
    NotFound { message: String },
    /// What was to be resumed cannot be; nothing was changed.
    #[error("{message}")]
    CannotResume { message: String },
    /// The coordinator found mistakes in a manifest.
    #[error("the coordinator refuses the manifest; nothing was started\n{mistakes}")]
    ManifestRefused { mistakes: String },
    /// The coordinator refused a request.
    #[error("the coordinator refused the request ({code}): {message}")]
    Refused { code: tonic::Code, message: String },
    /// The worker binary was not found.
    #[error(
        "cannot find ringmaster-worker beside {}; build it with `cargo build -p ringmaster-worker`, \
         or name it by --worker of `ringmaster agent` or by RINGMASTER_WORKER", beside.display()
    )]
    WorkerMissing { beside: PathBuf },
    /// What is named as worker is not a file.
    #[error(
        "{named} {found}; name the executable ringmaster-worker, or nothing to take the one beside this \
         command"
    )]
    WorkerNotAFile { named: String, found: String },
    /// The embedded agent ended before its job.
    #[error("the embedded agent ended early ({status}); its last words:\n{log}")]
    AgentEnded { status: String, log: String },
    /// The coordinator could not start or stop.
    #[error("the coordinator cannot serve from {}", state_dir.display())]
    Server { state_dir: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    /// An operation of the host failed.
    #[error("cannot {doing}")]
    Io { doing: String, source: std::io::Error },
    /// A checkpoint's store, or what lies there.
    #[error(transparent)]
    Checkpoint(#[from] ringmaster_checkpoint::Error),
    /// A data set's store, or what was asked of the data set.
    #[error(transparent)]
    Dataset(#[from] ringmaster_dataset::Error),
    /// Samples that cannot be used; which and why has been said.
    #[error("{what}")]
    NotUsable { what: String },
    /// What was named is not what the command is for.
    #[error("{url}: {reason}; {remedy}")]
    Checkpoints { url: String, reason: String, remedy: String },
    /// Checkpoints that are not what their manifests say; which and why has been said.
    #[error("{}", not_verified(*.bad, *.of, *.latest))]
    NotVerified { bad: usize, of: usize, latest: bool },
    /// A node's agent cannot start or go on, and its log says why.
    #[error(transparent)]
    Agent(ringmaster_agent::Error),
    /// The job ended without success.
    #[error("job {job_id} failed: {reason}")]
    JobFailed { job_id: String, reason: String },
    /// The job was cancelled.
    #[error("job {job_id} was cancelled: {reason}")]
    JobCancelled { job_id: String, reason: String },
    /// The job was stopped in the terminal, and what was saved has been said.
    #[error("job {job_id} was stopped")]
    Stopped { job_id: String },
    /// The user asked twice to stop.
    #[error("interrupted; the ranks of job {job_id} were killed without a last checkpoint")]
    Interrupted { job_id: String },
}

/// One data file that cannot be used, and the manifest field that names it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MissingFile {
    /// Path in the manifest, as in `spec.data.train`.
    pub(crate) field: String,
    /// The file.
    pub(crate) path: PathBuf,
    /// What is there instead, as in "does not exist".
    pub(crate) found: String,
}

impl Error {
    /// Returns an `Io` error for an operation named by an infinitive ("create x").
    pub(crate) fn io(doing: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }

    /// Maps the coordinator's answer to the error a person reads.
    pub(crate) fn from_status(url: &str, status: &tonic::Status) -> Self {
        // Only a status made on this side has a source: a coordinator sends a code and a message.
        let is_answer = std::error::Error::source(status).is_none();
        let (url, message) = (url.to_owned(), status.message().to_owned());
        match status.code() {
            tonic::Code::Unavailable if !address::is_foreign(status) => {
                Self::Unreachable { url, why: address::innermost(status) }
            }
            _ if was_cut_off(status) => {
                let why = "whoever listens there ended the connection before an answer came";
                Self::Unreachable { url, why: why.to_owned() }
            }
            tonic::Code::Unimplemented if is_answer && message.is_empty() => {
                let why = "it has no service for commands, as its listener for agents".to_owned();
                Self::NoCoordinator { url, why }
            }
            _ if address::is_foreign(status) => {
                let why = address::innermost(status);
                let why = format!("it does not speak gRPC without TLS: {why}");
                Self::NoCoordinator { url, why }
            }
            tonic::Code::NotFound => Self::NotFound { message },
            tonic::Code::InvalidArgument if has_mistakes(status) => {
                Self::ManifestRefused { mistakes: message }
            }
            code => Self::Refused { code, message },
        }
    }

    /// Whether somebody asked for an end.
    pub(crate) fn is_interruption(&self) -> bool {
        matches!(
            self,
            Self::Checkpoint(ringmaster_checkpoint::Error::Interrupted)
                | Self::Dataset(ringmaster_dataset::Error::Interrupted)
        )
    }

    /// Whether the command has said everything already.
    pub(crate) fn is_said(&self) -> bool {
        matches!(self, Self::Stopped { .. } | Self::Agent(_))
    }

    /// Returns the exit code for this error.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::ReadManifest { .. }
            | Self::Manifest { .. }
            | Self::ManifestRefused { .. }
            | Self::Models(_)
            | Self::UnknownModel { .. }
            | Self::Flag { .. }
            | Self::MissingData { .. }
            | Self::Memory { .. }
            | Self::Store { .. }
            | Self::Resume { .. }
            | Self::ResumeConflict { .. }
            | Self::Insecure { .. }
            | Self::Checkpoints { .. }
            | Self::Checkpoint(ringmaster_checkpoint::Error::Unusable { .. })
            | Self::Dataset(
                ringmaster_dataset::Error::Asked { .. }
                | ringmaster_dataset::Error::Data(
                    ringmaster_data::Error::Url { .. }
                    | ringmaster_data::Error::Missing { .. }
                    | ringmaster_data::Error::Empty { .. },
                ),
            )
            | Self::Agent(
                ringmaster_agent::Error::Address(_)
                | ringmaster_agent::Error::Advertised(_)
                | ringmaster_agent::Error::Listen { .. },
            )
            | Self::CoordinatorAddress(_) => exit_code::REFUSED,
            Self::Agent(ringmaster_agent::Error::Refused { .. }) => exit_code::HOPELESS,
            Self::Checkpoint(ringmaster_checkpoint::Error::Interrupted)
            | Self::Dataset(ringmaster_dataset::Error::Interrupted) => exit_code::CANCELLED,
            Self::Refused { code: tonic::Code::InvalidArgument, .. }
            | Self::CannotResume { .. } => exit_code::REFUSED,
            Self::Unreachable { .. } | Self::NoCoordinator { .. } => exit_code::UNREACHABLE,
            Self::NotFound { .. } => exit_code::NOT_FOUND,
            Self::JobCancelled { .. } | Self::Stopped { .. } | Self::Interrupted { .. } => {
                exit_code::CANCELLED
            }
            _ => exit_code::FAILED,
        }
    }
}

/// Whether a refusal is about a manifest and tells its mistakes.
fn has_mistakes(status: &tonic::Status) -> bool {
    let mistakes: Option<ManifestMistakes> = details(status, "ringmaster.v1.ManifestMistakes");
    mistakes.is_some()
}

fn not_verified(bad: usize, of: usize, latest: bool) -> String {
    let remedy = "a resume passes damaged ones over; `ringmaster checkpoints rm` deletes them";
    match (bad, latest) {
        (0, _) => "latest.json is not right; the next checkpoint corrects it".to_owned(),
        (bad, false) => format!("{bad} of {of} checkpoints are damaged; {remedy}"),
        (bad, true) => format!("{bad} of {of} checkpoints and latest.json are damaged; {remedy}"),
    }
}

const MISSING_SHOWN: usize = 5;

fn missing_data(missing: &[MissingFile]) -> String {
    let files = if missing.len() == 1 { "1 data file is" } else { "data files are" };
    let count = if missing.len() == 1 { String::new() } else { format!("{} ", missing.len()) };
    let mut text = format!("{count}{files} not there to be read; nothing was started");
    for file in missing.iter().take(MISSING_SHOWN) {
        text.push_str(&format!("\n  {}: {} {}", file.field, file.path.display(), file.found));
    }
    if missing.len() > MISSING_SHOWN {
        text.push_str(&format!("\n  … and {} more", missing.len() - MISSING_SHOWN));
    }
    text.push_str(
        "\ncorrect the paths in the manifest (relative ones start at the manifest's folder), or \
         make the files; `cargo xtask setup` makes those of the examples",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_files_are_named_with_their_field_and_the_rest_is_counted() {
        let missing = (0..7)
            .map(|n| MissingFile {
                field: "spec.data.train".to_owned(),
                path: PathBuf::from(format!("/data/{n:05}.tar")),
                found: "does not exist".to_owned(),
            })
            .collect();
        let text = Error::MissingData { missing }.to_string();
        assert!(text.starts_with("7 data files are not there"), "{text}");
        assert!(text.contains("spec.data.train: /data/00000.tar does not exist\n"), "{text}");
        assert!(text.contains("and 2 more"), "{text}");
        assert!(!text.contains("00005"), "{text}");
    }

    #[test]
    fn a_status_becomes_the_error_and_exit_code_a_script_can_tell_apart() {
        let url = "http://127.0.0.1:7070";
        let code = |status| Error::from_status(url, &status).exit_code();
        assert_eq!(code(tonic::Status::unavailable("refused")), exit_code::UNREACHABLE);
        assert_eq!(code(tonic::Status::not_found("no job x")), exit_code::NOT_FOUND);
        assert_eq!(code(tonic::Status::invalid_argument("bad")), exit_code::REFUSED);
        assert_eq!(code(tonic::Status::internal("oops")), exit_code::FAILED);
    }
}
