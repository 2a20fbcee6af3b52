//! A job's ranks as a script of what their heartbeats say, second by second.

use proptest::prelude::*;

use super::*;

const GENERATION: Generation = Generation::new(1, 1);

fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// What a rank does next, and for how many seconds nothing of it shows.
#[derive(Debug, Clone, Copy)]
struct Act {
    phase: Phase,
    seconds: u64,
}

/// A job whose ranks run the same program: every step is data, compute, a collective, apply.
struct Job {
    progress: Progress,
    now: Instant,
    statuses: Vec<RankStatus>,
    deadlines: Deadlines,
}

impl Job {
    fn new(ranks: u32) -> Self {
        let statuses = (0..ranks)
            .map(|rank| RankStatus { rank, generation: Some(GENERATION), ..RankStatus::default() })
            .collect();
        let (progress, now) = (Progress::default(), Instant::now());
        Self { progress, now, statuses, deadlines: Deadlines::default() }
    }

    /// Every rank reports once a second for so long; returns the first verdict.
    fn pass(&mut self, seconds: u64) -> Option<Verdict> {
        let mut first = None;
        for _ in 0..seconds {
            self.now += secs(1);
            for status in &self.statuses {
                self.progress.observe(Seat(status.rank), status, self.now);
            }
            let joined = BTreeSet::new();
            let verdict = self.progress.judge(GENERATION, &joined, &self.deadlines, self.now);
            first = first.or(verdict);
        }
        first
    }

    fn set(&mut self, rank: usize, phase: Phase) {
        self.statuses[rank].phase = phase.into();
    }

    fn set_all(&mut self, phase: Phase) {
        (0..self.statuses.len()).for_each(|rank| self.set(rank, phase));
    }

    /// All ranks are in `phase` for so long without anything else to show.
    fn all(&mut self, act: Act) -> Option<Verdict> {
        self.set_all(act.phase);
        self.pass(act.seconds)
    }

    /// Everybody but `rank` has done its part and waits in the next collective.
    fn others_wait_for(&mut self, rank: usize) {
        for other in (0..self.statuses.len()).filter(|other| *other != rank) {
            self.set(other, Phase::Collective);
            self.statuses[other].collective_sequence += 1;
        }
    }

    /// One step, of which `slow` is so long in `phase` while the others wait for it.
    fn step(&mut self, slow: usize, act: Act) -> Option<Verdict> {
        let mut verdict = None;
        for phase in [Phase::Data, Phase::Compute] {
            self.set_all(phase);
            if phase != act.phase {
                verdict = verdict.or(self.pass(1));
                continue;
            }
            self.others_wait_for(slow);
            verdict = verdict.or(self.pass(act.seconds));
            for other in (0..self.statuses.len()).filter(|other| *other != slow) {
                self.statuses[other].collective_sequence -= 1;
            }
        }
        for status in &mut self.statuses {
            status.collective_sequence += 1;
        }
        verdict = verdict.or(self.all(Act { phase: Phase::Collective, seconds: 1 }));
        for status in &mut self.statuses {
            status.step += 1;
        }
        verdict.or(self.all(Act { phase: Phase::Apply, seconds: 1 }))
    }

    /// Steps of so many seconds of compute.
    fn steps(&mut self, count: u64, seconds: u64) -> Option<Verdict> {
        let step = Act { phase: Phase::Compute, seconds };
        (0..count).fold(None, |verdict, _| verdict.or(self.step(0, step)))
    }
}

/// A job of four ranks that has done some steps of so many seconds.
fn training(seconds: u64) -> Job {
    let mut job = Job::new(4);
    assert_eq!(job.all(Act { phase: Phase::Load, seconds: 5 }), None);
    assert_eq!(job.steps(6, seconds), None);
    job
}

fn culprit(verdict: Option<&Verdict>) -> Option<(u32, Phase)> {
    match verdict {
        Some(Verdict::Hung { seat, phase, .. }) => Some((seat.0, *phase)),
        _ => None,
    }
}

#[test]
fn a_rank_hung_in_compute_is_blamed_and_not_those_that_wait_for_it() {
    let mut job = training(2);
    let verdict = job.step(2, Act { phase: Phase::Compute, seconds: 1000 });
    assert_eq!(culprit(verdict.as_ref()), Some((2, Phase::Compute)));
    let text = verdict.map(|verdict| verdict.to_string()).unwrap_or_default();
    assert_eq!(text, "it hangs: no progress in compute after step 6 for 121 s (deadline 120 s)");
}

#[test]
fn a_hung_loader_is_blamed_and_one_that_makes_progress_is_not() {
    let mut job = training(1);
    job.set_all(Phase::Data);
    job.others_wait_for(1);
    for _ in 0..100 {
        job.statuses[1].progress += 1;
        assert_eq!(job.pass(60), None, "a sample a minute is slow and no standstill");
    }
    let verdict = job.pass(20 * 60 + 10);
    assert_eq!(culprit(verdict.as_ref()), Some((1, Phase::Data)));
}

#[test]
fn a_rank_behind_in_an_older_generation_is_blamed_even_if_it_waits_there() {
    let mut job = training(1);
    let old = Generation::new(1, 0);
    job.set_all(Phase::Join);
    job.statuses[3].generation = Some(old);
    job.set(3, Phase::Collective);
    let joined = BTreeSet::from([0, 1, 2].map(Seat));
    let mut verdict = None;
    for _ in 0..1000 {
        job.now += secs(1);
        for status in &job.statuses {
            job.progress.observe(Seat(status.rank), status, job.now);
        }
        let now = job.progress.judge(GENERATION, &joined, &job.deadlines, job.now);
        verdict = verdict.or(now);
    }
    assert_eq!(culprit(verdict.as_ref()), Some((3, Phase::Collective)));
}

#[test]
fn ranks_that_wait_for_the_others_at_the_coordinator_are_never_judged() {
    let mut job = Job::new(2);
    job.set_all(Phase::Join);
    let joined = BTreeSet::from([0, 1].map(Seat));
    for _ in 0..5000 {
        job.now += secs(1);
        for status in &job.statuses {
            job.progress.observe(Seat(status.rank), status, job.now);
        }
        assert_eq!(job.progress.judge(GENERATION, &joined, &job.deadlines, job.now), None);
    }
}

#[test]
fn when_every_rank_waits_the_ring_is_stuck_and_nobody_is_blamed() {
    let mut job = training(1);
    for status in &mut job.statuses {
        status.collective_sequence += 1;
    }
    // One still waits for what the others have got: that does not make it the culprit.
    job.statuses[1].collective_sequence -= 1;
    let verdict = job.all(Act { phase: Phase::Collective, seconds: 400 });
    let Some(Verdict::RingStuck { step: 6, stood_still, .. }) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(stood_still, secs(301));
}

#[test]
fn a_process_that_was_asked_for_and_never_spoke_is_blamed() {
    let mut job = Job::new(1);
    job.set(0, Phase::Join);
    let joined = BTreeSet::from([Seat(0)]);
    let mut verdict = None;
    for _ in 0..130 {
        job.now += secs(1);
        job.progress.observe(Seat(0), &job.statuses[0], job.now);
        job.progress.expect(Seat(1), GENERATION, job.now);
        verdict = verdict.or(job.progress.judge(GENERATION, &joined, &job.deadlines, job.now));
    }
    assert_eq!(culprit(verdict.as_ref()), Some((1, Phase::Start)));
}

#[test]
fn a_store_that_is_away_for_a_minute_in_a_load_or_a_save_is_nobodys_fault() {
    let mut job = Job::new(2);
    assert_eq!(job.all(Act { phase: Phase::Load, seconds: 65 }), None);
    assert_eq!(job.steps(4, 1), None);
    for phase in [Phase::Save, Phase::Data] {
        job.set_all(phase);
        job.others_wait_for(1);
        assert_eq!(job.pass(65), None, "{phase:?}");
        job.statuses[1].collective_sequence += 1;
    }
    assert_eq!(job.steps(4, 1), None);
}

#[test]
fn a_slow_first_step_is_left_alone_and_measures_the_first_steps_after_a_recovery() {
    let mut job = Job::new(2);
    assert_eq!(job.step(0, Act { phase: Phase::Compute, seconds: 600 }), None);
    assert_eq!(job.steps(6, 1), None);
    // It has not made the job's later steps look slow.
    let verdict = job.clone_job().step(1, Act { phase: Phase::Compute, seconds: 130 });
    assert_eq!(culprit(verdict.as_ref()), Some((1, Phase::Compute)));
    // In the next generation the first step may be slow again.
    let next = Generation::new(1, 2);
    for status in &mut job.statuses {
        (status.generation, status.collective_sequence) = (Some(next), 0);
    }
    assert_eq!(job.step(0, Act { phase: Phase::Compute, seconds: 600 }), None);
}

#[test]
fn a_first_step_that_was_quick_before_does_not_get_a_quarter_of_an_hour_again() {
    let mut job = training(1);
    let next = Generation::new(1, 2);
    for status in &mut job.statuses {
        (status.generation, status.collective_sequence) = (Some(next), 0);
    }
    job.set_all(Phase::Compute);
    job.others_wait_for(3);
    assert_eq!(culprit(job.pass(140).as_ref()), Some((3, Phase::Compute)));
}

#[test]
fn clocks_that_start_afresh_blame_nobody_for_the_time_before() {
    let mut job = training(1);
    job.set_all(Phase::Compute);
    job.others_wait_for(0);
    assert_eq!(job.pass(100), None);
    // The coordinator stood still for an hour; what it finds in its queue is old.
    job.now += secs(3600);
    job.progress.restart(job.now);
    assert_eq!(job.pass(100), None);
    assert_eq!(culprit(job.pass(30).as_ref()), Some((0, Phase::Compute)));
}

#[test]
fn a_rank_that_is_not_heard_of_is_the_leases_to_judge() {
    let mut job = training(1);
    job.set_all(Phase::Compute);
    job.others_wait_for(2);
    let silent = job.statuses.remove(2);
    assert_eq!(job.pass(1000), None);
    job.statuses.push(silent);
    assert_eq!(job.pass(1), None, "back, and what it did meanwhile is not known");
}

impl Job {
    fn clone_job(&self) -> Self {
        Self {
            progress: self.progress.clone(),
            now: self.now,
            statuses: self.statuses.clone(),
            deadlines: self.deadlines.clone(),
        }
    }
}

proptest! {
    #[test]
    fn a_step_ten_times_slower_is_left_alone(
        seconds in 1_u64..40,
        slow in 0_usize..4,
        data in any::<bool>(),
    ) {
        let mut job = training(seconds);
        // Readers have shown what a slow batch takes only where batches are slow.
        let (phase, seconds) =
            if data { (Phase::Data, 10) } else { (Phase::Compute, 10 * seconds) };
        prop_assert_eq!(job.step(slow, Act { phase, seconds }), None);
        prop_assert_eq!(job.steps(3, 1), None);
    }

    #[test]
    fn an_evaluation_as_long_as_twenty_steps_is_left_alone(
        seconds in 1_u64..40,
        slow in 0_usize..4,
    ) {
        let mut job = training(seconds);
        job.set_all(Phase::Eval);
        job.others_wait_for(slow);
        prop_assert_eq!(job.pass(20 * (seconds + 3)), None);
    }

    #[test]
    fn whoever_hangs_is_found_in_time_and_nobody_else_is_blamed(
        seconds in 1_u64..10,
        hung in 0_usize..4,
        phase in prop_oneof![
            Just(Phase::Data),
            Just(Phase::Compute),
            Just(Phase::Apply),
            Just(Phase::Eval),
            Just(Phase::Save)
        ],
        calm in 0_u64..5,
    ) {
        let mut job = training(seconds);
        prop_assert_eq!(job.steps(calm, seconds), None);
        job.set_all(phase);
        job.others_wait_for(hung);
        let verdict = job.pass(3700);
        prop_assert_eq!(culprit(verdict.as_ref()), Some((hung as u32, phase)));
        let Some(Verdict::Hung { stood_still, deadline, .. }) = verdict else { unreachable!() };
        prop_assert!(stood_still <= deadline + secs(2), "{:?} {:?}", stood_still, deadline);
    }
}
