//! The learning rate of a step, as OpenCLIP computes it.

use ringmaster_manifest::spec::{Schedule, ScheduleKind};

/// Returns the learning rate of step `step` (0-based) with peak `lr`.
///
/// Warm-up is linear, `lr (step + 1) / warmup`; then the constant peak, or half a cosine
/// `lr (1 + cos(π (step − warmup) / (total − warmup))) / 2`.
pub fn learning_rate(schedule: &Schedule, lr: f64, step: u64) -> f64 {
    let warmup = schedule.warmup_steps;
    if step < warmup {
        return lr * (step + 1) as f64 / warmup as f64;
    }
    match schedule.kind {
        ScheduleKind::Const => lr,
        ScheduleKind::Cosine => {
            let length = schedule.total_steps.saturating_sub(warmup).max(1) as f64;
            let progress = ((step - warmup) as f64 / length).min(1.0);
            0.5 * (1.0 + (std::f64::consts::PI * progress).cos()) * lr
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(warmup_steps: u64, total_steps: u64) -> Schedule {
        Schedule { kind: ScheduleKind::Cosine, warmup_steps, total_steps }
    }

    #[test]
    fn warm_up_reaches_the_peak_at_its_last_step_and_the_cosine_ends_near_zero() {
        let schedule = cosine(4, 12);
        let rates: Vec<f64> = (0..12).map(|step| learning_rate(&schedule, 2.0, step)).collect();
        assert_eq!(rates[..5], [0.5, 1.0, 1.5, 2.0, 2.0]);
        assert!((rates[8] - 1.0).abs() < 1e-12, "half way down at half time: {}", rates[8]);
        assert!(rates[11] < 0.1 && rates[11] > 0.0);
        assert!(rates[4..].is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn a_run_that_is_all_warm_up_does_not_divide_by_zero() {
        assert_eq!(learning_rate(&cosine(3, 3), 1.0, 3), 1.0);
    }
}
