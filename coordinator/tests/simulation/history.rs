//! What a job's state is made of, and what its object store holds.
//!
//! A state is told apart by everything that made it: where it began, and for each step the ring that
//! reduced its gradients. In reality the same step of two rings differs in the last bits only; here it
//! differs in the whole digest, so a state of another branch of a job's history is never taken for the
//! right one.

use std::collections::{BTreeMap, BTreeSet};

use ringmaster_proto::v1::Generation;

use super::ring::{Ring, RingKey};
use super::world::{State, World, short};

/// Tells one state from another.
pub(crate) type Digest = u64;

/// A checkpoint's name, in the order in which they are looked for.
pub(crate) type Name = (Generation, u64);

/// A state and the step after which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) step: u64,
    pub(crate) digest: Digest,
}

/// Gradients of one step that all ranks of a ring have reduced together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gradients {
    step: u64,
    pub(crate) ring: Generation,
    /// Of the state they were computed with.
    of: Digest,
}

/// What a rank holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) at: At,
    /// Of the next step, once it has entered *ready* of it.
    pub(crate) gradients: Option<Gradients>,
    /// The newest ring whose ranks all held the state that this one comes from.
    pub(crate) agreed: Option<Generation>,
}

/// How a state came about: by a step of a ring out of another. The first one has no entry.
#[derive(Debug, Clone, Copy)]
struct Made {
    parent: Digest,
    step: u64,
    ring: Generation,
}

/// A job goes on from an older checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WentBack {
    pub(crate) to: Name,
    /// Up to this generation, what was made above it is given up.
    pub(crate) up_to: Generation,
}

impl WentBack {
    fn gives_up(&self, name: Name) -> bool {
        name > self.to && name.0 <= self.up_to
    }
}

/// The histories of all jobs, by job id.
#[derive(Default)]
pub(crate) struct History {
    made: BTreeMap<Digest, Made>,
    jobs: BTreeMap<String, Job>,
}

/// What is known of one job's states.
#[derive(Default)]
struct Job {
    /// What the object store holds.
    store: BTreeMap<Name, Digest>,
    /// Roll-backs as the object store shows them.
    marks: Vec<WentBack>,
    /// The newest roll-back that is durable.
    went_back: Option<WentBack>,
    /// Checkpoints whose publication was acknowledged and that nobody has given up.
    acknowledged: BTreeSet<Name>,
    /// The newest ring whose ranks have all held the same state.
    agreed: Option<Generation>,
}

impl Held {
    pub(crate) fn new(at: At) -> Self {
        Self { at, gradients: None, agreed: None }
    }

    /// Takes in that the gradients of the next step are reduced.
    pub(crate) fn reduce(&mut self, ring: Generation) {
        let At { step, digest } = self.at;
        self.gradients = Some(Gradients { step: step + 1, ring, of: digest });
    }
}

impl World {
    /// Applies the gradients that a rank holds, if it holds any.
    pub(crate) fn apply(&self, held: &mut Held) -> Option<Gradients> {
        let gradients = held.gradients.take()?;
        held.at = self.with(|state| state.history.apply(held.at, gradients));
        Some(gradients)
    }

    /// What a rank reads that is to begin from what is stored: the newest checkpoint, or the very one
    /// that the job went back to, or what was saved since. Without any, the seed makes the state.
    pub(crate) fn load(&self, job_id: &str, went_back: Option<WentBack>) -> At {
        self.with(|state| {
            let job = state.history.jobs.entry(job_id.to_owned()).or_default();
            let newest = match went_back {
                Some(back) => {
                    job.marks.push(back);
                    let since = job.store.keys().next_back().filter(|name| name.0 > back.up_to);
                    Some(since.copied().unwrap_or(back.to))
                }
                None => job.standing().next_back(),
            };
            let stored = newest.and_then(|name| Some((name, *job.store.get(&name)?)));
            let seed = At { step: 0, digest: mix(short(job_id).bytes().map(u64::from)) };
            stored.map_or(seed, |((_, step), digest)| At { step, digest })
        })
    }

    /// Writes MANIFEST.json; returns where.
    pub(crate) fn put_checkpoint(&self, key: &RingKey, at: At) -> String {
        self.with(|state| {
            let job = state.history.jobs.entry(key.0.clone()).or_default();
            job.store.insert((key.1, at.step), at.digest);
        });
        url(&key.0, (key.1, at.step))
    }

    /// The store is told of a roll-back.
    pub(crate) fn mark_rollback(&self, job_id: &str, went_back: WentBack) {
        self.with(|state| {
            state.history.jobs.entry(job_id.to_owned()).or_default().marks.push(went_back)
        });
    }

    pub(crate) fn acknowledged_checkpoint(&self, job_id: &str, name: Name) {
        self.with(|state| {
            let job = state.history.jobs.entry(job_id.to_owned()).or_default();
            if job.went_back.is_none_or(|back| name.0 > back.up_to) {
                job.acknowledged.insert(name);
            }
        });
    }

    /// What a job may rely on when it asks for its newest checkpoint now.
    pub(crate) fn published(&self, job_id: &str) -> Name {
        self.with(|state| state.history.floor(job_id))
    }

    /// Checkpoints that somebody may go back to, the oldest first: not the newest, and none given up.
    pub(crate) fn older_checkpoints(&self, job_id: &str) -> Vec<Name> {
        self.with(|state| {
            let Some(job) = state.history.jobs.get(job_id) else { return Vec::new() };
            let mut names: Vec<Name> = job.standing().collect();
            names.retain(|name| job.acknowledged.contains(name));
            names.pop();
            names
        })
    }
}

impl Job {
    /// What nobody has given up, as far as the store shows it.
    fn standing(&self) -> impl DoubleEndedIterator<Item = Name> {
        let given_up = |name: &Name| self.marks.iter().any(|back| back.gives_up(*name));
        self.store.keys().copied().filter(move |name| !given_up(name))
    }
}

impl History {
    fn apply(&mut self, at: At, gradients: Gradients) -> At {
        let Gradients { step, ring, of } = gradients;
        let ring_word = u64::from(ring.incarnation) << 32 | u64::from(ring.counter);
        let digest = mix([at.digest, of, step, ring_word]);
        self.made.insert(digest, Made { parent: at.digest, step, ring });
        At { step: at.step + 1, digest }
    }

    /// Newest acknowledged checkpoint that nobody has given up; the beginning without any.
    fn floor(&self, job_id: &str) -> Name {
        let job = self.jobs.get(job_id);
        job.and_then(|job| job.acknowledged.last().copied()).unwrap_or_default()
    }

    /// A roll-back has become durable.
    pub(crate) fn go_back(&mut self, job_id: &str, went_back: WentBack) {
        let job = self.jobs.entry(job_id.to_owned()).or_default();
        job.went_back = Some(went_back);
        // What was given up before is not gone back to; this one stands whatever it was.
        job.acknowledged.retain(|name| !went_back.gives_up(*name));
        job.acknowledged.insert(went_back.to);
    }

    /// Up to which generation a job's work was given up.
    pub(crate) fn gives_up(&self, job_id: &str) -> Option<Generation> {
        Some(self.jobs.get(job_id)?.went_back?.up_to)
    }

    /// Says which part of a state's history was given up, if one was.
    fn given_up(&self, job_id: &str, at: At) -> Option<String> {
        let job = self.jobs.get(job_id)?;
        let back = job.went_back?;
        let (mut digest, mut step) = (at.digest, at.step);
        while step > back.to.1 {
            let made = self.made.get(&digest)?;
            if made.ring <= back.up_to {
                return Some(format!("step {} of {}, up to {}", made.step, made.ring, back.up_to));
            }
            (digest, step) = (made.parent, made.step - 1);
        }
        let expected = job.store.get(&back.to)?;
        (step == back.to.1 && digest != *expected)
            .then(|| format!("another state of step {step} than the one gone back to"))
    }

    /// By which ring's gradients a state was made.
    fn made_by(&self, digest: Digest) -> Option<Generation> {
        self.made.get(&digest).map(|made| made.ring)
    }
}

impl State {
    /// All ranks of a ring have compared their states: checks what it begins with.
    pub(crate) fn check_beginning(&mut self, key: &RingKey, ring: &Ring) {
        let Some(at) = ring.begins_at else { return };
        for (invariant, what) in self.wrong_beginnings(key, ring, at) {
            self.violate_at(self.now, invariant, format!("{} {}: {what}", short(&key.0), key.1));
        }
        let job = self.history.jobs.entry(key.0.clone()).or_default();
        job.agreed = job.agreed.max(Some(key.1));
    }

    fn wrong_beginnings(&self, key: &RingKey, ring: &Ring, at: At) -> Vec<(&'static str, String)> {
        let history = &self.history;
        let mut wrong = Vec::new();
        // What a ring does that was given up itself is nobody's concern.
        let counts = history.gives_up(&key.0).is_none_or(|up_to| key.1 > up_to);
        let floor = history.floor(&key.0);
        if counts && at.step < floor.1 {
            let what =
                format!("begins at step {}, {} of {} was published", at.step, floor.1, floor.0);
            wrong.push(("a ring never begins below the newest acknowledged checkpoint", what));
        }
        if counts && let Some(what) = history.given_up(&key.0, at) {
            wrong.push(("a ring never begins with a state that a roll-back gave up", what));
        }
        let newest = history.jobs.get(&key.0).and_then(|job| job.agreed);
        for (place, member) in &ring.members {
            let held = member.held.as_ref();
            let agreed = held.and_then(|held| held.agreed);
            let stands = agreed > history.gives_up(&key.0) && agreed == newest;
            if ring.stored && agreed.is_some() && stands {
                let what = format!("rank {place} on {} holds that of {newest:?}", member.node);
                wrong.push((
                    "while a survivor of the newest agreed ring lives, no recovery reads a checkpoint",
                    what,
                ));
            }
            let by = history.made_by(at.digest);
            if let Some(applied) = member.applied.filter(|applied| by != Some(applied.ring)) {
                let what =
                    format!("rank {place} applies those of {}, the source {by:?}", applied.ring);
                wrong.push(("a rank applies only gradients of its own ring", what));
            }
            if member.posted != Some(at.digest) {
                let what = format!("rank {place} on {} differs from the source", member.node);
                wrong.push(("the replicas of a ring hold one state", what));
            }
        }
        wrong
    }
}

/// Where a checkpoint lies.
pub(crate) fn url(job_id: &str, (generation, step): Name) -> String {
    format!("sim://{job_id}/step-{step:06}.{generation}")
}

/// Generation and step of a checkpoint's URL; nothing for none.
pub(crate) fn parse_url(url: &str) -> Name {
    let parse = || {
        let (_, name) = url.rsplit_once("/step-")?;
        let (step, generation) = name.split_once('.')?;
        Some((generation.parse().ok()?, step.parse().ok()?))
    };
    parse().unwrap_or_default()
}

/// One word out of several, the same in every run.
fn mix(words: impl IntoIterator<Item = u64>) -> u64 {
    words.into_iter().fold(0x9e37_79b9_7f4a_7c15, |hash, word| {
        let mut mixed = hash ^ word.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^= mixed >> 30;
        mixed = mixed.wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 27)
    })
}
