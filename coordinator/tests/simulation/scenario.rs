//! What a seed means: a cluster, its jobs, and what strikes them when.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use ringmaster_agent::exit::Class;

/// Recoveries without a new step that a job is allowed where chance must not use them up …
const MANY: u32 = 50;
/// … and where it may.
const FEW: std::ops::RangeInclusive<u32> = 1..=3;

/// Faults strike from this moment …
const QUIET: Duration = Duration::from_secs(1);
/// … to this one. Then everything is repaired.
pub(crate) const CALM: Duration = Duration::from_secs(25);

/// Everything that is drawn before a run.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// Slots of every node.
    pub(crate) slots: Vec<u32>,
    pub(crate) jobs: Vec<JobPlan>,
    pub(crate) drains: Vec<Drain>,
    /// In the order of time.
    pub(crate) faults: Vec<(Duration, Fault)>,
    /// What settling takes for each job.
    pub(crate) settling_cost: Duration,
    /// What a rank takes at most to start, in milliseconds.
    pub(crate) start_ms: u64,
}

/// Somebody closes a node.
#[derive(Debug, Clone)]
pub(crate) struct Drain {
    pub(crate) node: usize,
    pub(crate) at: Duration,
    /// None: for good.
    pub(crate) lasts: Option<Duration>,
}

/// Somebody pauses a job.
#[derive(Debug, Clone)]
pub(crate) struct Pause {
    pub(crate) at: Duration,
    /// From when it holds until it is resumed; none: for good.
    pub(crate) lasts: Option<Duration>,
}

/// One job.
#[derive(Debug, Clone)]
pub(crate) struct JobPlan {
    pub(crate) name: String,
    pub(crate) at: Duration,
    pub(crate) ranks: u32,
    pub(crate) min_ranks: u32,
    pub(crate) priority: i32,
    pub(crate) steps: u64,
    /// Its steps take ten times as long as those of other jobs.
    pub(crate) slow: bool,
    pub(crate) checkpoint_every: u64,
    pub(crate) cancel_at: Option<Duration>,
    /// One after the other.
    pub(crate) pauses: Vec<Pause>,
    /// When somebody goes back to an older checkpoint, and to which of those there are by then.
    pub(crate) rollbacks: Vec<(Duration, usize)>,
    pub(crate) max_without_progress: u32,
}

/// What strikes.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The coordinator's process ends and starts again later.
    CoordinatorCrash { down: Duration },
    /// A machine goes with its agent and ranks, and comes back empty. A short time is an agent
    /// that was restarted: its ranks end with it.
    NodeCrash { node: usize, down: Duration },
    /// An agent is told to end: its ranks save and stop within the notice, and it comes back later.
    NodeLeave { node: usize, notice: Duration, down: Duration },
    /// A rank is killed. Which one is decided when the time comes: `pick` modulo how many run.
    RankKill { pick: usize },
    /// A rank stands where it is: without a word until its agent kills it, or with signs of life until
    /// its job's deadline passes.
    RankHang { pick: usize, mute: bool },
    /// A rank stands where it is, its connections stay open, and no kill ends it for so long; for good
    /// without a time.
    Undead { pick: usize, lasts: Option<Duration> },
    /// A ring breaks although everybody lives; when its ranks are about to end, if it is `frail`: then
    /// some know already that all are through, and others do not.
    RingBreak { pick: usize, frail: bool },
    /// Ranks of two nodes do not reach each other.
    LinkDown { one: usize, other: usize, lasts: Duration },
    /// A rank cannot store its part of the next checkpoint. Once the coordinator has acknowledged
    /// that, it may crash.
    ShardFails { pick: usize, then_down: Option<Duration> },
    /// A rank's part of the next checkpoint stays in the store's hands for longer than anybody waits.
    ShardStalls { pick: usize },
    /// Ranks that are started on a node fail before they join; for good without a time.
    BrokenNode { node: usize, class: Class, lasts: Option<Duration> },
    /// All ranks of a job fail alike from now on.
    BrokenJob { pick: usize, class: Class },
    /// The clock that people go by is put forward or back.
    ClockStep { seconds: i64 },
    /// Another agent comes under the name of a node, on another machine.
    Twin { node: usize, lasts: Duration },
    /// Messages between coordinator and node are lost, and with them their connections.
    Partition { node: usize, lasts: Duration },
    /// Only what the node says is lost (requests), or only what it hears (replies).
    OneWay { node: usize, from_node: bool, lasts: Duration },
    /// Messages are kept and come later, as after retransmission.
    Hold { node: usize, lasts: Duration },
    /// Everything takes up to this long.
    SlowNetwork { most: Duration, lasts: Duration },
    /// People lose the coordinator.
    ClientPartition { lasts: Duration },
}

impl Fault {
    /// What it is counted as where it struck somebody.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::CoordinatorCrash { .. } => "fault: coordinator crash",
            Self::NodeCrash { .. } => "fault: node crash",
            Self::NodeLeave { .. } => "fault: node leave",
            Self::RankKill { .. } => "fault: rank kill",
            Self::RankHang { mute: true, .. } => "fault: rank hang",
            Self::RankHang { mute: false, .. } => "fault: rank stuck",
            Self::Undead { .. } => "fault: undead",
            Self::RingBreak { frail: false, .. } => "fault: ring break",
            Self::RingBreak { frail: true, .. } => "fault: ring break at the end",
            Self::LinkDown { .. } => "fault: link down",
            Self::ShardFails { .. } => "fault: shard fails",
            Self::ShardStalls { .. } => "fault: shard stalls",
            Self::BrokenNode { .. } => "fault: node fault",
            Self::BrokenJob { .. } => "fault: job fault",
            Self::ClockStep { .. } => "fault: clock step",
            Self::Twin { .. } => "fault: twin",
            Self::Partition { .. } => "fault: partition",
            Self::OneWay { .. } => "fault: one way",
            Self::Hold { .. } => "fault: hold",
            Self::SlowNetwork { .. } => "fault: slow network",
            Self::ClientPartition { .. } => "fault: client partition",
        }
    }
}

impl Scenario {
    /// Draws a scenario.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        if random.random_bool(0.1) {
            return Self::cut_off(&mut random);
        }
        let nodes = random.random_range(1..=4);
        let slots: Vec<u32> = (0..nodes).map(|_| random.random_range(1..=3)).collect();
        let total: u32 = slots.iter().sum();
        let allowed = if random.random_bool(0.2) { random.random_range(FEW) } else { MANY };
        let jobs = (0..random.random_range(1..=5)).map(|index| JobPlan {
            max_without_progress: allowed,
            ..job(&mut random, index, total)
        });
        let mut jobs: Vec<JobPlan> = jobs.collect();
        let count = random.random_range(0..=10);
        let mut faults: Vec<_> = (0..count)
            .map(|_| (duration(&mut random, QUIET, CALM), fault(&mut random, nodes)))
            .collect();
        for index in 0..faults.len() {
            let (at, fault) = faults[index].clone();
            company(&mut random, at, &fault, &mut faults, &mut jobs);
        }
        faults.sort_by_key(|(at, _)| *at);
        // A node has one keeper: what two at once make of it, neither of them knows.
        let count = if random.random_bool(0.4) { random.random_range(1..=nodes.min(2)) } else { 0 };
        let first = random.random_range(0..nodes);
        let drains = (0..count).map(|at| drain(&mut random, (first + at) % nodes)).collect();
        let slow = random.random_bool(0.5);
        let cost = if slow { random.random_range(1..=25) } else { 0 };
        let start_ms = if random.random_bool(0.3) { 2500 } else { 400 };
        let settling_cost = Duration::from_millis(cost);
        Self { slots, jobs, drains, faults, settling_cost, start_ms }
    }

    /// Draws one of a kind that chance alone makes too seldom: some ranks of an elastic job are cut off,
    /// it goes on without them, and when they come back it is about to form another ring.
    fn cut_off(random: &mut StdRng) -> Self {
        let nodes = random.random_range(2..=3);
        let slots: Vec<u32> = (0..nodes).map(|_| random.random_range(1..=2)).collect();
        let total = slots.iter().sum();
        let mut job = JobPlan { at: Duration::ZERO, ..job(random, 0, total) };
        (job.ranks, job.min_ranks) = (total, 1);
        (job.cancel_at, job.pauses, job.rollbacks) = (None, Vec::new(), Vec::new());
        job.steps = random.random_range(80..=250) / if job.slow { 10 } else { 1 };
        let (short, long) = (Duration::from_secs(3), Duration::from_secs(8));
        let (at, lasts) = (duration(random, short, long), duration(random, short, long));
        let node = random.random_range(0..nodes);
        let mut faults = vec![(at, Fault::Partition { node, lasts })];
        let before = |random: &mut StdRng| {
            (at + lasts).saturating_sub(duration(random, Duration::ZERO, short))
        };
        if random.random_bool(0.5) {
            job.rollbacks.push((before(random), random.random_range(0..100)));
        } else {
            for _ in 0..random.random_range(1..=total) {
                let pick = random.random_range(0..1000);
                faults.push((before(random), Fault::RankKill { pick }));
            }
        }
        if random.random_bool(0.5) {
            let pick = random.random_range(0..1000);
            faults.push((before(random), Fault::RingBreak { pick, frail: false }));
        }
        faults.sort_by_key(|(at, _)| *at);
        let settling_cost = Duration::from_millis(random.random_range(0..=100));
        let start_ms = random.random_range(400..=2500);
        Self { slots, jobs: vec![job], drains: Vec::new(), faults, settling_cost, start_ms }
    }

    /// What people do and undo again.
    pub(crate) fn plans(&self) -> usize {
        let of_jobs = self.jobs.iter().map(|job| job.pauses.len() + job.rollbacks.len());
        self.drains.len() + of_jobs.sum::<usize>()
    }
}

fn drain(random: &mut StdRng, node: usize) -> Drain {
    Drain { node, at: people_act(random), lasts: some_time(random) }
}

/// Mostly one, and now and then another after it.
fn pauses(random: &mut StdRng) -> Vec<Pause> {
    let mut pauses = Vec::new();
    while random.random_bool(0.25) {
        let pause = Pause { at: people_act(random), lasts: some_time(random) };
        let for_good = pause.lasts.is_none();
        pauses.push(pause);
        if for_good {
            break;
        }
    }
    pauses.sort_by_key(|pause| (pause.lasts.is_none(), pause.at));
    pauses
}

fn people_act(random: &mut StdRng) -> Duration {
    duration(random, QUIET, CALM)
}

fn some_time(random: &mut StdRng) -> Option<Duration> {
    let (short, long) = (Duration::from_millis(200), Duration::from_secs(10));
    (!random.random_bool(0.15)).then(|| duration(random, short, long))
}

fn job(random: &mut StdRng, index: usize, total: u32) -> JobPlan {
    // Now and then one that no node of this cluster could hold.
    let most = if random.random_bool(0.05) { total + 2 } else { total };
    let ranks = random.random_range(1..=most.min(5));
    let cancelled = random.random_bool(0.12);
    let slow = random.random_bool(0.2);
    JobPlan {
        name: format!("j{index}"),
        at: duration(random, Duration::ZERO, Duration::from_secs(15)),
        ranks,
        min_ranks: if random.random_bool(0.5) { ranks } else { random.random_range(1..=ranks) },
        priority: random.random_range(-1..=1),
        // Some outlast most faults, so that what a fault left behind has time to do harm.
        steps: if slow {
            random.random_range(3..=25)
        } else if random.random_bool(0.3) {
            random.random_range(80..=250)
        } else {
            random.random_range(3..=80)
        },
        slow,
        checkpoint_every: random.random_range(2..=if slow { 4 } else { 15 }),
        cancel_at: cancelled
            .then(|| duration(random, Duration::from_secs(2), Duration::from_secs(30))),
        pauses: pauses(random),
        rollbacks: rollbacks(random),
        max_without_progress: MANY,
    }
}

/// Seldom, and now and then again.
fn rollbacks(random: &mut StdRng) -> Vec<(Duration, usize)> {
    let mut rollbacks = Vec::new();
    while random.random_bool(0.15) {
        rollbacks.push((people_act(random), random.random_range(0..100)));
    }
    rollbacks.sort_unstable();
    rollbacks
}

fn fault(random: &mut StdRng, nodes: usize) -> Fault {
    let node = random.random_range(0..nodes);
    let pick = random.random_range(0..1000);
    let (short, long) = (Duration::from_millis(100), Duration::from_secs(6));
    let lasts = duration(random, short, long);
    match random.random_range(0..100) {
        0..12 => {
            Fault::CoordinatorCrash { down: duration(random, Duration::from_millis(20), long) }
        }
        12..18 => Fault::NodeCrash { node, down: duration(random, short, 2 * long) },
        18..21 => Fault::NodeLeave {
            node,
            notice: duration(random, 5 * short, long / 2),
            down: duration(random, long / 2 + short, 2 * long),
        },
        21..31 => Fault::RankKill { pick },
        31..38 => Fault::RankHang { pick, mute: random.random_bool(0.5) },
        38..45 => Fault::RingBreak { pick, frail: random.random_bool(0.5) },
        45..54 => Fault::Partition { node, lasts },
        54..60 => Fault::OneWay { node, from_node: random.random_bool(0.5), lasts },
        60..66 => Fault::Hold { node, lasts: lasts / 2 },
        66..70 => {
            Fault::SlowNetwork { most: duration(random, short, Duration::from_secs(1)), lasts }
        }
        70..73 => Fault::ClientPartition { lasts },
        _ => rare_fault(random, node, nodes, pick),
    }
}

/// Who comes back from a partition may find that its job has gone on without it, or gone back. So
/// something often happens to the job just before.
fn company(
    random: &mut StdRng,
    at: Duration,
    fault: &Fault,
    faults: &mut Vec<(Duration, Fault)>,
    jobs: &mut [JobPlan],
) {
    let (Fault::Partition { lasts, .. } | Fault::OneWay { lasts, .. }) = *fault else { return };
    let before = duration(random, Duration::ZERO, lasts.min(Duration::from_millis(2500)));
    let at = (at + lasts).saturating_sub(before);
    let pick = random.random_range(0..1000);
    match random.random_range(0..100) {
        0..15 => faults.push((at, Fault::RankKill { pick })),
        15..30 => faults.push((at, Fault::RingBreak { pick, frail: false })),
        30..60 => {
            for job in jobs.iter_mut().filter(|job| job.min_ranks < job.ranks) {
                job.rollbacks.push((at, pick));
                job.rollbacks.sort_unstable();
            }
        }
        _ => {}
    }
}

/// What one machine, one link or one job has wrong with it.
fn rare_fault(random: &mut StdRng, node: usize, nodes: usize, pick: usize) -> Fault {
    let (short, long) = (Duration::from_millis(500), Duration::from_secs(20));
    let lasts = duration(random, short, long);
    let for_good = random.random_bool(0.3);
    match random.random_range(0..100) {
        0..20 => Fault::Undead { pick, lasts: (!for_good).then_some(lasts) },
        20..44 => {
            let lasts = if for_good { lasts + long } else { lasts };
            let other = (node + 1 + pick % (nodes - 1).max(1)) % nodes;
            Fault::LinkDown { one: node, other, lasts }
        }
        44..52 => Fault::ShardStalls { pick },
        52..60 => {
            let down = duration(random, short, Duration::from_secs(4));
            Fault::ShardFails { pick, then_down: random.random_bool(0.5).then_some(down) }
        }
        60..75 => {
            let class = [Class::Retry, Class::Node, Class::Node, Class::Job][pick % 4];
            Fault::BrokenNode { node, class, lasts: (!for_good).then_some(lasts) }
        }
        75..86 => {
            Fault::BrokenJob { pick, class: [Class::Retry, Class::Node, Class::Job][pick % 3] }
        }
        86..93 => Fault::ClockStep { seconds: random.random_range(-100_000..=100_000) },
        _ => Fault::Twin { node, lasts },
    }
}

fn duration(random: &mut StdRng, least: Duration, most: Duration) -> Duration {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
    Duration::from_millis(random.random_range(millis(least)..=millis(most)))
}
