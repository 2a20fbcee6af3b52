//! Whether checkpoints can be written, found out while the model is built and not by the first checkpoint, hours
//! later.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use ringmaster_checkpoint as checkpoint;
use ringmaster_proto::v1::{Generation, NoteKind};
use ringmaster_words::chain;

use super::waits::People;
use crate::control::history::History;
use crate::error::Error;

/// Time a file system or a store has to answer once everything else is ready. What answers later may still work
/// when there is something to save.
const PATIENCE: Duration = Duration::from_secs(10);

/// A look at the folder of checkpoints that goes on beside other work.
#[derive(Debug)]
pub(crate) struct FolderCheck {
    uri: String,
    answer: Receiver<Result<(), checkpoint::Error>>,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Writable,
    /// People should know, and training goes on.
    Told(NoteKind, String),
}

impl FolderCheck {
    /// Begins to write where the checkpoints of `job_id` are to lie.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(uri: &str, job_id: &str) -> Result<Self, Error> {
        const NAME: &str = "checkpoint-folder";
        let (tell, answer) = channel();
        let (folder, job_id) = (uri.to_owned(), job_id.to_owned());
        // Nobody waits for its end: a file system that hangs may never let it go.
        let look = move || {
            let _ = tell.send(checkpoint::check_writable(&folder, &job_id));
        };
        std::thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(look)
            .map_err(|source| Error::Thread { name: NAME, source })?;
        Ok(Self { uri: uri.to_owned(), answer })
    }

    /// Waits for the answer, for `patience` at most.
    fn verdict(self, patience: Duration) -> Result<Verdict, Error> {
        let Self { uri, answer } = self;
        match answer.recv_timeout(patience) {
            Ok(Ok(())) => Ok(Verdict::Writable),
            Ok(Err(source)) if source.refuses() => Err(Error::CheckpointFolder { uri, source }),
            Ok(Err(error)) if error.is_full() => {
                let message =
                    format!("checkpoints cannot be stored until there is room: {}", chain(&error));
                Ok(Verdict::Told(NoteKind::CheckpointFailed, message))
            }
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "whether checkpoints can be written is not known yet");
                Ok(Verdict::Writable)
            }
            Err(RecvTimeoutError::Timeout) => {
                let message = format!(
                    "{uri} does not answer: whether checkpoints can be written there is not known yet"
                );
                Ok(Verdict::Told(NoteKind::Waits, message))
            }
            // The thread has panicked, which ends the process.
            Err(RecvTimeoutError::Disconnected) => Ok(Verdict::Writable),
        }
    }
}

impl FolderCheck {
    /// Makes sure that this rank is not refused for good where its checkpoints are to lie; what people should
    /// know goes into the history in the name of a generation.
    pub(crate) fn finish(self, history: &History, generation: Generation) -> Result<(), Error> {
        if let Verdict::Told(kind, message) = self.verdict(PATIENCE)? {
            tracing::warn!("{message}");
            People::new(history.clone(), generation).tell(kind, message);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_agent::exit::Class;

    use super::*;

    fn of_code(code: &str) -> checkpoint::Error {
        let source = format!("<Error><Code>{code}</Code></Error>").into();
        let source = object_store::Error::Generic { store: "S3", source }.into();
        checkpoint::Error::Store { action: "write", object: "s3://runs/job/x".to_owned(), source }
    }

    fn answered(answer: checkpoint::Error) -> Result<Verdict, Error> {
        let (tell, receiver) = channel();
        tell.send(Err(answer)).unwrap();
        FolderCheck { uri: "s3://runs".to_owned(), answer: receiver }.verdict(Duration::ZERO)
    }

    #[test]
    fn a_folder_that_takes_checkpoints_is_no_news() {
        let folder = tempfile::tempdir().unwrap();
        let uri = folder.path().to_str().unwrap();
        let verdict = FolderCheck::start(uri, "job-1").unwrap().verdict(Duration::from_secs(120));
        assert_eq!(verdict.unwrap(), Verdict::Writable);
    }

    #[test]
    fn a_folder_of_this_node_that_takes_none_is_the_nodes_fault_and_a_stores_refusal_the_jobs() {
        let local = FolderCheck::start("/proc/ringmaster", "job-1").unwrap();
        let error = local.verdict(Duration::from_secs(120)).unwrap_err();
        assert_eq!((error.class(), error.operation()), (Class::Node, "write checkpoints"));
        let error = answered(of_code("AccessDenied")).unwrap_err();
        assert_eq!((error.class(), error.cause()), (Class::Job, "store: no permission".to_owned()));
    }

    #[test]
    fn a_full_store_is_told_and_one_that_is_away_is_left_for_later() {
        let full = answered(of_code("QuotaExceeded")).unwrap();
        assert!(matches!(&full, Verdict::Told(NoteKind::CheckpointFailed, _)), "{full:?}");
        assert_eq!(answered(of_code("InternalError")).unwrap(), Verdict::Writable);
        let (_tell, answer) = channel();
        let silent = FolderCheck { uri: "/mnt/runs".to_owned(), answer };
        let told = silent.verdict(Duration::ZERO).unwrap();
        assert!(
            matches!(&told, Verdict::Told(NoteKind::Waits, text) if text.contains("/mnt/runs"))
        );
    }
}
