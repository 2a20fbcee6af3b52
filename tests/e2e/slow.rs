//! What is slow is left alone, though it stands still far longer than its phase's floor.

use std::time::Duration;

use ringmaster_tests::binaries::binaries;
use ringmaster_tests::slow::Slow;

/// The job stood still as long as it was meant to, and ended well in its first generation.
fn is_left_alone(slow: Slow) {
    let outcome = slow.scenario().run(binaries());
    println!("{slow:?}: {:.2} s without a step", outcome.longest);
    assert!(outcome.longest >= slow.standstill().as_secs_f64(), "{outcome:?}");
    assert_eq!(outcome.alarms, [""; 0]);
}

#[test]
fn a_slow_first_step_is_left_alone() {
    is_left_alone(Slow::FirstStep);
}

#[test]
fn a_step_ten_times_slower_than_the_others_is_left_alone() {
    is_left_alone(Slow::Step);
}

#[test]
fn a_job_whose_data_store_is_away_waits_for_it() {
    is_left_alone(Slow::StoreAway(Duration::from_secs(5)));
}

#[test]
fn an_evaluation_as_long_as_twenty_steps_is_left_alone() {
    is_left_alone(Slow::Evaluation);
}
