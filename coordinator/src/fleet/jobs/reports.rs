//! What a ring says of itself: notes for the job's history, and the summary at the end.

use ringmaster_proto::v1;

use super::job::Job;
use crate::fleet::{Batch, Error};

/// The kind of event that tells what befalls a store.
const STORE: &str = "store";
/// The kind of event that tells why a checkpoint was not stored.
const CHECKPOINT_FAILED: &str = "checkpoint_failed";

impl Job {
    /// Puts a note of the current generation into the history, once.
    pub(crate) fn note(&mut self, batch: &mut Batch, kind: &'static str, message: String) {
        let generation = self.generation();
        if kind == CHECKPOINT_FAILED {
            self.checkpoint_trouble.clone_from(&message);
            self.changed = true;
        }
        if kind == STORE {
            // A store may be in the same trouble again; all ranks say the same of it.
            self.notes.retain(|(_, known, earlier)| *known != kind || *earlier == message);
        }
        if self.notes.insert((generation, kind, message.clone())) {
            self.event(batch, kind, message);
        }
    }

    /// Takes in the summary of a run that reached its end. Its ranks are to end by themselves now.
    pub(crate) fn finish(&mut self, batch: &mut Batch, summary_json: String) -> Result<(), Error> {
        if self.is_finished() {
            return Ok(());
        }
        if summary_json.is_empty() {
            return Err(Error::Invalid {
                field: "summary_json",
                value: "empty".to_owned(),
                constraint: "a finished run hands in its summary".to_owned(),
            });
        }
        self.record.summary_json = summary_json;
        self.kill_at = Some(batch.now.at + batch.config.grace);
        self.event(batch, "finished", "rank 0 handed in the summary".to_owned());
        Ok(())
    }
}

/// Returns the kind of event that a note becomes.
pub(crate) fn kind_of(note: &v1::NoteRequest) -> Result<&'static str, Error> {
    match note.kind() {
        v1::NoteKind::SlowLink => Ok("slow_link"),
        v1::NoteKind::Evaluation => Ok("evaluation"),
        v1::NoteKind::Store => Ok(STORE),
        v1::NoteKind::CheckpointFailed => Ok(CHECKPOINT_FAILED),
        v1::NoteKind::Waits => Ok("waits"),
        v1::NoteKind::Data => Ok("data"),
        v1::NoteKind::Unspecified => Err(Error::Invalid {
            field: "kind",
            value: note.kind.to_string(),
            constraint: "a kind of note that this coordinator knows".to_owned(),
        }),
    }
}
