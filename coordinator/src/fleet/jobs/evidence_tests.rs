use std::sync::LazyLock;

use super::*;

/// When everything happens that is not said to happen later: however long a test is held up.
static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);

fn failure(class: ExitClass, cause: &str, node: &str, point: Point) -> Failure {
    let identity = Identity { class, operation: "op".to_owned(), cause: cause.to_owned() };
    Failure {
        identity,
        node: node.to_owned(),
        started: Generation::new(1, 1),
        at: *NOW,
        point,
        weight: 1.0,
        how: format!("{cause} on {node}"),
    }
}

fn training(step: u64) -> Point {
    Point::of(Phase::Compute, step)
}

/// A rank that was started with those that fail.
fn reach(evidence: &mut Evidence, node: &str, point: Point) {
    evidence.reach(node, Generation::new(1, 1), point);
}

fn charges(evidence: &mut Evidence) -> Vec<(String, f64)> {
    evidence.take_due().into_iter().map(|charge| (charge.node, charge.faults)).collect()
}

#[test]
fn points_are_ordered_by_how_much_lies_behind_them() {
    let starts = Point::of(Phase::Load, 7);
    let joins = Point::of(Phase::Join, 7);
    assert!(starts < joins && joins < training(0) && training(0) < training(1));
    assert_eq!(starts, Point::of(Phase::Start, 0));
    assert_eq!(Point::of(Phase::Collective, 3), Point::of(Phase::Save, 3));
}

#[test]
fn what_two_nodes_meet_ends_the_job_and_charges_neither() {
    let mut evidence = Evidence::default();
    for class in [ExitClass::Node, ExitClass::Job] {
        let start = Point::default();
        assert_eq!(evidence.fail(&failure(class, "x", "a", start), false), None);
        let proof = evidence.fail(&failure(class, "x", "b", start), false);
        assert_eq!(proof.as_deref(), Some("the same happened on a"));
        reach(&mut evidence, "c", training(1));
        assert_eq!(charges(&mut evidence), []);
        evidence.clear();
    }
}

#[test]
fn what_the_only_node_meets_twice_ends_the_job_unless_a_step_lies_between() {
    let mut evidence = Evidence::default();
    let once = failure(ExitClass::Job, "x", "a", Point::default());
    let again = Failure { started: Generation::new(1, 2), ..once.clone() };
    assert_eq!(evidence.fail(&once, true), None);
    assert_eq!(evidence.fail(&once, true), None, "another rank of the same attempt");
    let other = failure(ExitClass::Job, "y", "a", Point::default());
    assert_eq!(evidence.fail(&other, true), None, "another failure");
    evidence.progressed();
    assert_eq!(evidence.fail(&once, true), None);
    assert_eq!(evidence.fail(&again, false), None, "another node could run it");
    let third = Failure { started: Generation::new(1, 3), ..once };
    let proof = evidence.fail(&third, true);
    assert_eq!(proof.as_deref(), Some("it happened twice on a, which alone could run it"));
}

#[test]
fn what_a_rank_calls_its_node_s_does_not_end_a_job_that_another_node_runs() {
    let mut evidence = Evidence::default();
    reach(&mut evidence, "a", training(9));
    for (counter, node) in [(1, "b"), (1, "c"), (2, "b"), (3, "b")] {
        let started = Generation::new(1, counter);
        let broken = failure(ExitClass::Node, "no device", node, Point::default());
        assert_eq!(evidence.fail(&Failure { started, ..broken }, true), None);
    }
    // Of what it calls the job's the other node is no witness: it may have begun before.
    evidence.fail(&failure(ExitClass::Job, "manifest", "b", Point::default()), false);
    let proof = evidence.fail(&failure(ExitClass::Job, "manifest", "c", Point::default()), false);
    assert_eq!(proof.as_deref(), Some("the same happened on b"));
}

#[test]
fn what_befalls_all_ranks_of_a_node_at_once_is_one_fault() {
    let mut evidence = Evidence::default();
    for _ in 0..8 {
        evidence.fail(&failure(ExitClass::Retry, "unheard", "b", training(5)), false);
    }
    reach(&mut evidence, "a", training(6));
    assert_eq!(charges(&mut evidence), [("b".to_owned(), 1.0)]);
}

#[test]
fn what_lies_an_hour_back_is_no_evidence_and_only_what_is_left_of_a_charge_is_taken_back() {
    let mut evidence = Evidence::default();
    let first = failure(ExitClass::Retry, "signal 9", "b", training(5));
    evidence.fail(&first, false);
    reach(&mut evidence, "a", training(6));
    assert_eq!(charges(&mut evidence), [("b".to_owned(), 1.0)]);
    let later = |minutes: u64, node: &str| Failure {
        at: first.at + Duration::from_secs(60 * minutes),
        ..failure(ExitClass::Retry, "signal 9", node, training(8))
    };
    let mut soon = Evidence { open: evidence.open.clone(), ..Evidence::default() };
    soon.fail(&later(30, "c"), false);
    let left = charges(&mut soon);
    assert!((left[0].1 + 0.5_f64.sqrt()).abs() < 1e-5, "{left:?}");
    evidence.fail(&later(60, "c"), false);
    assert_eq!(charges(&mut evidence), [], "that is another matter");
}

#[test]
fn what_may_pass_never_ends_a_job_by_itself() {
    let mut evidence = Evidence::default();
    for node in ["a", "a", "b", "a"] {
        let killed = failure(ExitClass::Retry, "signal 9", node, training(3));
        assert_eq!(evidence.fail(&killed, true), None);
    }
}

#[test]
fn a_node_is_charged_once_another_has_got_past_the_point_where_it_failed() {
    let mut evidence = Evidence::default();
    reach(&mut evidence, "a", training(5));
    reach(&mut evidence, "b", training(5));
    evidence.fail(&failure(ExitClass::Retry, "signal 11", "b", training(5)), false);
    assert_eq!(charges(&mut evidence), [], "nobody has got past step 5");
    reach(&mut evidence, "b", training(6));
    assert_eq!(charges(&mut evidence), [], "the node itself is no witness");
    reach(&mut evidence, "a", training(6));
    assert_eq!(charges(&mut evidence), [("b".to_owned(), 1.0)]);
    reach(&mut evidence, "a", training(7));
    assert_eq!(charges(&mut evidence), [], "once");
    // That others were past the point before says nothing: what is wrong now might befall them, too.
    evidence.fail(&failure(ExitClass::Node, "no device", "b", Point::default()), false);
    assert_eq!(charges(&mut evidence), []);
    reach(&mut evidence, "a", training(7));
    assert_eq!(charges(&mut evidence), [("b".to_owned(), 1.0)]);
}

#[test]
fn a_rank_that_was_started_before_is_no_witness_of_a_start_that_fails() {
    let mut evidence = Evidence::default();
    let start = failure(ExitClass::Retry, "panic", "b", Point::default());
    evidence.fail(&Failure { started: Generation::new(1, 2), ..start }, false);
    evidence.reach("a", Generation::new(1, 1), Point::of(Phase::Join, 0));
    evidence.reach("a", Generation::new(1, 1), training(9));
    assert_eq!(charges(&mut evidence), []);
    evidence.reach("a", Generation::new(1, 2), Point::of(Phase::Join, 0));
    assert_eq!(charges(&mut evidence), [("b".to_owned(), 1.0)]);
}

#[test]
fn what_a_second_node_meets_in_the_same_way_as_part_of_another_fault_is_no_fault_of_the_first() {
    let mut evidence = Evidence::default();
    evidence.fail(&failure(ExitClass::Retry, "panic", "b", training(5)), false);
    evidence.echo(&failure(ExitClass::Retry, "panic", "b", training(5)));
    evidence.echo(&failure(ExitClass::Retry, "signal 9", "a", training(5)));
    let mut other = Evidence { open: evidence.open.clone(), ..Evidence::default() };
    reach(&mut other, "c", training(6));
    assert_eq!(charges(&mut other), [("b".to_owned(), 1.0)], "that is another matter");
    evidence.echo(&failure(ExitClass::Retry, "panic", "a", training(5)));
    evidence.fail(&failure(ExitClass::Retry, "panic", "b", training(5)), false);
    reach(&mut evidence, "c", training(6));
    assert_eq!(charges(&mut evidence), []);
}

#[test]
fn a_charge_is_taken_back_when_another_node_fails_in_the_same_way() {
    let mut evidence = Evidence::default();
    evidence.fail(&failure(ExitClass::Retry, "signal 9", "b", training(5)), false);
    reach(&mut evidence, "a", training(6));
    assert_eq!(charges(&mut evidence), [("b".to_owned(), 1.0)]);
    evidence.progressed();
    evidence.fail(&failure(ExitClass::Retry, "signal 9", "a", training(9)), false);
    assert_eq!(charges(&mut evidence), [("b".to_owned(), -1.0)]);
    // From then on it is known to be the job's.
    evidence.fail(&failure(ExitClass::Retry, "signal 9", "c", training(9)), false);
    reach(&mut evidence, "a", training(10));
    assert_eq!(charges(&mut evidence), []);
}

#[test]
fn what_a_rank_calls_the_job_s_fault_is_charged_to_no_node() {
    let mut evidence = Evidence::default();
    evidence.fail(&failure(ExitClass::Job, "manifest", "b", Point::default()), false);
    reach(&mut evidence, "a", training(1));
    assert_eq!(charges(&mut evidence), []);
}

#[test]
fn ten_jobs_that_fail_everywhere_charge_no_node() {
    for job in 0..10 {
        let mut evidence = Evidence::default();
        let nodes = ["a", "b", "c"];
        for attempt in 0..6 {
            let node = nodes[(job + attempt) % 3];
            evidence.fail(&failure(ExitClass::Retry, "signal 9", node, training(2)), false);
            for other in nodes {
                reach(&mut evidence, other, training(3 + attempt as u64));
            }
        }
        let sum: f64 = evidence.take_due().iter().map(|charge| charge.faults).sum();
        assert!(sum.abs() < 1e-5, "{sum}");
    }
}

#[test]
fn a_node_is_left_out_until_then_or_until_somebody_vouches_for_it() {
    let mut evidence = Evidence::default();
    let now = Instant::now();
    let minute = Duration::from_secs(60);
    evidence.avoid("a", now, minute, LeftFor::Failure, "no device".to_owned());
    evidence.avoid("b", now, minute, LeftFor::Link, "no route".to_owned());
    assert!(evidence.avoids("b", now) && !evidence.rules_out("b", now));
    assert!(evidence.rules_out("a", now));
    evidence.accept("b");
    assert!(evidence.avoids("a", now) && !evidence.avoids("b", now));
    assert_eq!(evidence.avoided(now), BTreeMap::from([("a".to_owned(), "no device".to_owned())]));
    assert!(!evidence.avoids("a", now + minute));
    assert_eq!(evidence.avoided(now + minute), BTreeMap::new());
}

#[test]
fn a_job_that_cannot_do_without_a_node_tries_it_again_the_later_the_more_often_it_has() {
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let mut evidence = Evidence::default();
    for patience in [15, 30, 60, 120, 240, 480, 480] {
        for _ in 0..2 {
            let why = "no device".to_owned();
            evidence.avoid("a", now, second * 600, LeftFor::Failure, why);
        }
        evidence.relent(now + second * (patience - 1));
        assert!(evidence.avoids("a", now + second * (patience - 1)), "{patience}");
        evidence.relent(now + second * patience);
        assert!(!evidence.avoids("a", now + second * patience), "{patience}");
    }
    evidence.avoid("b", now, second * 600, LeftFor::Undead, "undead".to_owned());
    evidence.relent(now + second * 599);
    assert!(evidence.avoids("b", now + second * 599));
}

#[test]
fn what_weighs_more_is_not_replaced_by_what_weighs_less() {
    let (now, minute) = (Instant::now(), Duration::from_secs(60));
    let mut evidence = Evidence::default();
    for for_what in [LeftFor::Link, LeftFor::Undead, LeftFor::Failure, LeftFor::Link] {
        evidence.avoid("a", now, minute * 10, for_what, format!("{for_what:?}"));
    }
    evidence.relent(now + minute * 9);
    assert_eq!(evidence.avoided(now)["a"], "Undead");
}

#[test]
fn a_node_that_breaks_rings_is_charged_once_those_that_were_there_before_train_without_it() {
    let mut evidence = Evidence::default();
    let broke = failure(ExitClass::Retry, "b breaks it", "b", Point::of(Phase::Join, 0));
    evidence.fail(&Failure { started: Generation::new(1, 5), ..broke }, false);
    reach(&mut evidence, "a", Point::of(Phase::Join, 0));
    assert_eq!(charges(&mut evidence), []);
    reach(&mut evidence, "a", training(3));
    assert_eq!(charges(&mut evidence), [("b".to_owned(), 1.0)]);
}
