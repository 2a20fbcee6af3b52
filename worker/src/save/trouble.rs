//! Checkpoints that are not stored: people are told the first time, and then more and more rarely, since the
//! same trouble may last for days.

use ringmaster_checkpoint as checkpoint;
use ringmaster_proto::v1::NoteKind;
use ringmaster_words as words;

use super::waits::People;

/// Skipped in a row, from which on it is not bad luck.
const MANY_SKIPPED: u32 = 3;

/// What has gone wrong since the last checkpoint that was stored.
pub(super) struct Trouble {
    people: People,
    failed: u32,
    /// What kind of thing went wrong last.
    cause: String,
    skipped: u32,
}

impl Trouble {
    pub(super) fn new(people: People) -> Self {
        Self { people, failed: 0, cause: String::new(), skipped: 0 }
    }

    /// The checkpoint of `step` was not stored.
    pub(super) fn failed(&mut self, step: u64, error: &checkpoint::Error) {
        // The generation is over, and the next one knows what to save.
        if matches!(error, checkpoint::Error::Abandoned { .. }) {
            return;
        }
        self.failed += 1;
        let cause = error.cause();
        // A new cause is news, however many have failed before.
        if self.cause != cause || self.failed.is_power_of_two() {
            let message = failed(step, self.failed, &words::chain(error));
            self.people.tell(NoteKind::CheckpointFailed, message);
        }
        self.cause = cause;
    }

    /// The checkpoint of `step` was left out while that of `writing` is being written.
    pub(super) fn skipped(&mut self, step: u64, writing: u64) {
        self.skipped += 1;
        if is_worth_a_word(self.skipped) {
            let message = skipped(step, self.skipped, writing);
            self.people.tell(NoteKind::CheckpointFailed, message);
        }
    }

    /// A checkpoint was not skipped.
    pub(super) fn taken(&mut self) {
        self.skipped = 0;
    }

    /// A checkpoint was stored, as far as this rank knows.
    pub(super) fn stored(&mut self) {
        self.failed = 0;
        self.cause.clear();
    }
}

/// Three in a row, and then whenever there are twice as many.
fn is_worth_a_word(skipped: u32) -> bool {
    skipped == MANY_SKIPPED || (skipped > MANY_SKIPPED && skipped.is_power_of_two())
}

fn failed(step: u64, in_a_row: u32, why: &str) -> String {
    match in_a_row {
        1 => format!("the checkpoint of step {step} was not stored: {why}"),
        _ => format!("the checkpoint of step {step} was not stored, {in_a_row} in a row: {why}"),
    }
}

fn skipped(step: u64, in_a_row: u32, writing: u64) -> String {
    format!(
        "the checkpoint of step {step} was left out, {in_a_row} in a row: that of step {writing} is still \
         being written; raise checkpoint.every_steps, or see whether the store is slow"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_checkpoint_names_step_reason_and_how_many_there_were() {
        assert_eq!(
            failed(500, 1, "s3://runs is full"),
            "the checkpoint of step 500 was not stored: s3://runs is full"
        );
        assert_eq!(
            failed(700, 4, "s3://runs is full"),
            "the checkpoint of step 700 was not stored, 4 in a row: s3://runs is full"
        );
        let text = skipped(900, 3, 600);
        assert!(text.starts_with("the checkpoint of step 900 was left out, 3 in a row"), "{text}");
        assert!(text.contains("that of step 600 is still being written"), "{text}");
    }

    #[test]
    fn skipping_is_told_from_the_third_on_and_then_more_and_more_rarely() {
        let told: Vec<u32> = (1..=40).filter(|skipped| is_worth_a_word(*skipped)).collect();
        assert_eq!(told, [3, 4, 8, 16, 32]);
    }
}
