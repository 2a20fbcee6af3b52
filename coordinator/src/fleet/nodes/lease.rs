//! Leases: in memory only, with the clock as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Says how long somebody counts as alive without being heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    length: Duration,
    renewed: Instant,
    /// It ends so much before its length has passed.
    shortened: Duration,
}

impl Lease {
    /// Returns a lease that starts now.
    pub fn new(length: Duration, now: Instant) -> Self {
        Self { length, renewed: now, shortened: Duration::ZERO }
    }

    /// Starts it afresh. A clock value from before the last renewal changes nothing.
    pub fn renew(&mut self, now: Instant) {
        if now >= self.renewed {
            (self.renewed, self.shortened) = (now, Duration::ZERO);
        }
    }

    /// When somebody was heard last.
    pub fn renewed(&self) -> Instant {
        self.renewed
    }

    /// Nobody could be heard for so long: that does not count.
    pub fn excuse(&mut self, gap: Duration, now: Instant) {
        self.renewed = (self.renewed + gap).min(now.max(self.renewed));
    }

    /// For how long nobody was heard.
    pub fn unheard(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.renewed)
    }

    /// Makes it end no later than `left` from now, unless it is renewed.
    pub fn shorten(&mut self, left: Duration, now: Instant) {
        let end = self.renewed + self.length;
        self.shortened = self.shortened.max(end.saturating_duration_since(now + left));
    }

    /// True once the whole length has passed without renewal.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.unheard(now) + self.shortened >= self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_its_length_from_the_last_renewal() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut lease = Lease::new(5 * second, start);
        assert!(!lease.is_expired(start + 4 * second));
        lease.renew(start + 4 * second);
        assert!(!lease.is_expired(start + 8 * second));
        assert!(lease.is_expired(start + 9 * second));
    }

    #[test]
    fn a_shortened_lease_ends_sooner_never_later_and_can_be_renewed() {
        let start = Instant::now() + Duration::from_secs(100);
        let second = Duration::from_secs(1);
        let mut lease = Lease::new(5 * second, start);
        lease.shorten(2 * second, start + second);
        lease.shorten(2 * second, start + 2 * second);
        assert!(!lease.is_expired(start + 2 * second));
        assert!(lease.is_expired(start + 3 * second));
        lease.renew(start + 4 * second);
        assert!(!lease.is_expired(start + 8 * second));
        lease.shorten(20 * second, start + 4 * second);
        assert!(lease.is_expired(start + 9 * second));
    }

    #[test]
    fn time_that_seems_to_run_backwards_neither_ends_nor_shortens_a_lease() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut lease = Lease::new(Duration::from_secs(5), start);
        lease.renew(start - Duration::from_secs(50));
        assert!(!lease.is_expired(start - Duration::from_secs(90)));
        assert!(!lease.is_expired(start + Duration::from_secs(4)));
    }
}
