//! How long a recovery takes, for people.

use tokio::time::Instant;

/// When the parts of a recovery were done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recovery {
    /// The first loss was known.
    lost: Instant,
    /// The new ring stood.
    formed: Option<Instant>,
    /// Every rank of it held the state.
    ready: Option<Instant>,
}

impl Recovery {
    pub(crate) fn begin(now: Instant) -> Self {
        Self { lost: now, formed: None, ready: None }
    }

    /// A ring stands; it may be the second one, if ranks were lost while the first was formed.
    pub(crate) fn form(&mut self, now: Instant) {
        (self.formed, self.ready) = (Some(now), None);
    }

    /// Takes in whether every rank of the ring holds the state and whether a step is done. Returns what
    /// the recovery took once it is over.
    pub(crate) fn follow(
        &mut self,
        all_ready: bool,
        stepped: bool,
        now: Instant,
    ) -> Option<String> {
        let formed = self.formed?;
        if self.ready.is_none() && all_ready {
            self.ready = Some(now);
        }
        let ready = self.ready.filter(|_| stepped)?;
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        Some(format!(
            "recovered in {:.2} s: rejoin {:.2} s, state {:.2} s, first step {:.2} s",
            seconds(self.lost, now),
            seconds(self.lost, formed),
            seconds(formed, ready),
            seconds(ready, now)
        ))
    }
}
