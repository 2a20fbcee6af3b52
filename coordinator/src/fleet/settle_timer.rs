//! When to settle: a pure decision about the actor's time.

use std::time::Duration;

use tokio::time::Instant;

/// Settling may take one part in so many of the actor's time; the rest is for what arrives.
const SHARE: u32 = 4;

/// Settling looks at every job and every node. In a small cluster that costs nothing and follows
/// every batch. In one of thousands of nodes it takes milliseconds, and doing it for each of ten
/// thousand heartbeats per second would leave no time to answer them: so heartbeats alone never ask
/// for it before the next tick, and whatever does ask waits until settling has had no more than its
/// share of time.
#[derive(Debug)]
pub(super) struct SettleTimer {
    tick: Duration,
    /// Something arrived that settling may have to act on.
    wanted: bool,
    /// When the last one began.
    last: Instant,
    /// When the next one may begin.
    not_before: Instant,
}

impl SettleTimer {
    /// Returns the timer of an actor that starts now and settles at least once per tick.
    pub(super) fn new(tick: Duration, now: Instant) -> Self {
        Self { tick, wanted: true, last: now, not_before: now }
    }

    /// Takes in whether something arrived that settling may have to act on.
    pub(super) fn request(&mut self, wanted: bool) {
        self.wanted |= wanted;
    }

    /// When to settle, if nothing arrives before.
    pub(super) fn next(&self) -> Instant {
        let tick = (self.last + self.tick).max(self.not_before);
        if self.wanted { self.not_before.min(tick) } else { tick }
    }

    /// True when it is time.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next()
    }

    /// Notes that settling took from `began` to `ended`.
    pub(super) fn settled(&mut self, began: Instant, ended: Instant) {
        self.wanted = false;
        self.last = began;
        self.not_before = ended + (SHARE - 1) * ended.saturating_duration_since(began);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(250);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_quick_settling_follows_whatever_asks_for_it_at_once() {
        let start = Instant::now();
        let mut timer = SettleTimer::new(TICK, start);
        assert!(timer.is_due(start), "what was loaded is settled first");
        timer.settled(start, start);
        assert!(!timer.is_due(start + 249 * MS), "nothing asked");
        assert!(timer.is_due(start + TICK));
        timer.request(false);
        assert!(!timer.is_due(start + MS), "a heartbeat waits for the tick");
        timer.request(true);
        assert!(timer.is_due(start + MS));
    }

    #[test]
    fn a_slow_settling_takes_no_more_than_its_share_of_the_time() {
        let start = Instant::now();
        let mut timer = SettleTimer::new(TICK, start);
        timer.settled(start, start + 10 * MS);
        timer.request(true);
        assert!(!timer.is_due(start + 39 * MS));
        assert_eq!(timer.next(), start + 40 * MS);
        timer.settled(start, start + 200 * MS);
        assert_eq!(timer.next(), start + 800 * MS, "even when a tick has passed");
    }
}
