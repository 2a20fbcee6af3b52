//! Leases: in memory only, with the clock as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Says how long somebody counts as alive without being heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    length: Duration,
    renewed: Instant,
}

impl Lease {
    /// Returns a lease that starts now.
    pub fn new(length: Duration, now: Instant) -> Self {
        Self { length, renewed: now }
    }

    /// Starts it afresh. A clock value from before the last renewal changes nothing.
    pub fn renew(&mut self, now: Instant) {
        self.renewed = self.renewed.max(now);
    }

    /// Makes it end no later than `left` from now, unless it is renewed.
    pub fn shorten(&mut self, left: Duration, now: Instant) {
        if let Some(renewed) = (now + left).checked_sub(self.length) {
            self.renewed = self.renewed.min(renewed);
        }
    }

    /// True once the whole length has passed without renewal.
    pub fn is_expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.renewed) >= self.length
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
