//! What a rank tells the history of its job, where people look first: the terminal, `ringmaster events`
//! and `describe`.

use std::sync::Arc;

use ringmaster_proto::v1::{Generation, NoteKind, NoteRequest};
use ringmaster_store::{self as store, News};

use crate::control::coordinator::RanksClient;
use crate::control::interrupt::Interrupt;
use crate::eval::Scores;

/// A way to the job's history.
#[derive(Debug, Clone)]
pub(crate) struct History {
    client: RanksClient,
    job_id: String,
}

impl History {
    pub(crate) fn new(client: RanksClient, job_id: &str) -> Self {
        Self { client, job_id: job_id.to_owned() }
    }

    /// Leaves a note in the name of a generation; nothing waits for it to arrive.
    pub(crate) fn note(&self, generation: Generation, kind: NoteKind, message: String) {
        self.client.note(NoteRequest {
            job_id: self.job_id.clone(),
            generation: Some(generation),
            kind: kind.into(),
            message,
        });
    }

    /// Tells from now on what befalls the stores that this process uses.
    pub(crate) fn follow_stores(&self, interrupt: &Arc<Interrupt>) {
        let (history, interrupt) = (self.clone(), Arc::clone(interrupt));
        store::on_news(move |news| {
            let (News::Trouble(what) | News::Answers(what)) = news;
            history.note(interrupt.newest_generation(), NoteKind::Store, what);
        });
    }
}

/// Returns the scores of a set after a step in one line.
pub(crate) fn evaluation(step: u64, scores: &Scores) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let retrieval = &scores.retrieval;
    let skipped = match scores.skipped {
        0 => String::new(),
        1 => "; 1 sample could not be read".to_owned(),
        n => format!("; {n} samples could not be read"),
    };
    format!(
        "step {step}: {}: top-1 {}, top-5 {} over {} captions; R@1 image → text {}, text → image \
         {}{skipped}",
        scores.name,
        percent(scores.top1),
        percent(scores.top5),
        scores.classes,
        percent(retrieval.image_to_text.r1),
        percent(retrieval.text_to_image.r1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Ranks, Retrieval};

    #[test]
    fn an_evaluation_is_one_line_with_the_scores_that_people_compare() {
        let ranks = |r1| Ranks { r1, r5: 0.4, r10: 0.5, mean_rank: 9.0, median_rank: 4.0 };
        let mut scores = Scores {
            name: "twemoji".to_owned(),
            images: 1858,
            skipped: 0,
            classes: 1820,
            top1: 0.1512,
            top5: 0.35,
            retrieval: Retrieval { image_to_text: ranks(0.15), text_to_image: ranks(0.14) },
            predictions: Vec::new(),
        };
        let expected = "step 1000: twemoji: top-1 15.1 %, top-5 35.0 % over 1820 captions; R@1 image → \
                        text 15.0 %, text → image 14.0 %";
        assert_eq!(evaluation(1000, &scores), expected);
        scores.skipped = 2;
        let expected = format!("{expected}; 2 samples could not be read");
        assert_eq!(evaluation(1000, &scores), expected);
    }
}
