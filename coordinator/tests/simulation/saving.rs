//! Saving: every rank uploads its part, the first one asks for the grant and publishes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use ringmaster_proto::v1;
use ringmaster_proto::v1::ranks_client::RanksClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::call::insist_for;
use super::history::At;
use super::ring::RingKey;
use super::world::{State, World, short};

/// A commit that cannot come is refused within this time from when the coordinator could be heard.
const REFUSAL: Duration = Duration::from_secs(8);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a store that stalls keeps a part: longer than anybody waits for it.
const STALL: Duration = Duration::from_secs(10);

/// Parts of checkpoints that cannot be stored.
#[derive(Default)]
pub(crate) struct Shards {
    /// Rings of which a rank will fail to store its part.
    spoilt: BTreeMap<RingKey, Spoilt>,
    /// Failures that the coordinator has acknowledged, by ring and step, and when.
    failed: BTreeMap<(RingKey, u64), Duration>,
    /// Steps of which it is known that their commit was not refused.
    overdue: BTreeSet<(RingKey, u64)>,
}

/// Who fails in a ring's next save.
#[derive(Debug, Clone, Copy)]
struct Spoilt {
    place: u32,
    how: Spoils,
    /// Known once that save has begun.
    step: Option<u64>,
}

/// What becomes of a part that cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoils {
    /// Its rank says so; the coordinator may be down for a while after that.
    Fails { then_down: Option<Duration> },
    /// The store keeps it for long, and nothing is said.
    Stalls,
}

impl State {
    /// A rank of one of the rings that stand cannot store its part of the next checkpoint.
    pub(crate) fn spoil_shard(&mut self, pick: usize, how: Spoils) -> bool {
        let rings = self.live_rings();
        let Some(key) = pick.checked_rem(rings.len()).map(|index| rings[index].clone()) else {
            return false;
        };
        // The last one, so that the first waits for it where there are several.
        let place = u32::try_from(self.rings[&key].world_size - 1).unwrap();
        self.shards.spoilt.insert(key, Spoilt { place, how, step: None });
        true
    }

    /// What is wrong with a ring's checkpoint of this step, if something is.
    fn spoilt(&mut self, key: &RingKey, step: u64) -> Option<Spoilt> {
        let spoilt = self.shards.spoilt.get_mut(key)?;
        let at = *spoilt.step.get_or_insert(step);
        (at == step).then_some(*spoilt)
    }

    fn check_refusal(&mut self, key: &RingKey, step: u64) {
        let at = (key.clone(), step);
        let Some(&failed) = self.shards.failed.get(&at) else { return };
        let since = failed.max(self.troubled);
        let stands = self.rings.get(key).is_some_and(|ring| !ring.broken)
            && self.current.get(&key.0) == Some(&key.1);
        if stands && self.now > since + REFUSAL && self.shards.overdue.insert(at) {
            let what = format!(
                "{} {} step {step}: a part failed at {:.1} s, and the grant is waited for",
                short(&key.0),
                key.1,
                failed.as_secs_f64()
            );
            self.violate_at(self.now, "a commit that cannot come is refused", what);
        }
    }
}

/// One rank's part of one checkpoint.
pub(crate) struct Upload {
    pub(crate) world: World,
    pub(crate) client: RanksClient<Channel>,
    pub(crate) random: Arc<Mutex<StdRng>>,
    pub(crate) key: RingKey,
    pub(crate) place: u32,
    pub(crate) at: At,
}

impl Upload {
    /// Uploads this rank's part; rank 0 commits and publishes.
    pub(crate) async fn run(self) {
        let done = self.save().await;
        if self.place == 0 {
            self.world.saved(&self.key);
        }
        if let Err(status) = done
            && !matches!(status.code(), Code::Aborted | Code::FailedPrecondition)
        {
            let what = format!("{:?} step {}: {status}", self.key, self.at.step);
            self.world.violate("a checkpoint is refused for a known reason only", what);
        }
    }

    async fn save(&self) -> Result<(), Status> {
        let millis = self.random.lock().unwrap().random_range(20..500);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let spoilt = self.world.with(|state| state.spoilt(&self.key, self.at.step));
        let mine = spoilt.filter(|spoilt| spoilt.place == self.place).map(|spoilt| spoilt.how);
        let fails = matches!(mine, Some(Spoils::Fails { .. }));
        let then_down = spoilt.and_then(|spoilt| match spoilt.how {
            Spoils::Fails { then_down } => then_down,
            Spoils::Stalls => None,
        });
        if mine == Some(Spoils::Stalls) {
            tokio::time::sleep(STALL).await;
        }
        if self.place == 0
            && !fails
            && let Some(down) = then_down
        {
            // Until after the coordinator's restart.
            tokio::time::sleep(down + LOOK).await;
        }
        self.report(fails).await?;
        if fails {
            self.world.with(|state| {
                state.count("shard failures");
                let at = (self.key.clone(), self.at.step);
                state.shards.failed.insert(at, state.now);
                state.crash_wanted = then_down;
            });
        }
        if self.place > 0 || fails {
            return Ok(());
        }
        self.commit().await?;
        self.publish().await
    }

    async fn report(&self, fails: bool) -> Result<(), Status> {
        let object = v1::StoredObject {
            name: format!("shard-{}", self.place),
            size: 1,
            blake3: vec!["00".to_owned()],
            ..v1::StoredObject::default()
        };
        let shard = v1::ReportShardRequest {
            job_id: self.key.0.clone(),
            generation: Some(self.key.1),
            rank: self.place,
            step: self.at.step,
            objects: if fails { Vec::new() } else { vec![object] },
            failure: if fails { "the store takes nothing".to_owned() } else { String::new() },
        };
        let call = || {
            let (mut client, request) = (self.client.clone(), shard.clone());
            async move { client.report_shard(request).await }
        };
        insist_for(&self.world, &self.key, &self.random, call).await.map(|_| ())
    }

    /// Asks for the grant until it is given or refused.
    async fn commit(&self) -> Result<(), Status> {
        let commit = v1::CommitCheckpointRequest {
            job_id: self.key.0.clone(),
            generation: Some(self.key.1),
            step: self.at.step,
            digest: self.at.digest,
        };
        let call = insist_for(&self.world, &self.key, &self.random, || {
            let (mut client, request) = (self.client.clone(), commit.clone());
            async move { client.commit_checkpoint(request).await }
        });
        let mut call = std::pin::pin!(call);
        loop {
            match tokio::time::timeout(LOOK, &mut call).await {
                Ok(answer) => return answer.map(|_| ()),
                Err(_) => {
                    self.world.with(|state| state.check_refusal(&self.key, self.at.step));
                }
            }
        }
    }

    async fn publish(&self) -> Result<(), Status> {
        let url = self.world.put_checkpoint(&self.key, self.at);
        let published = v1::CheckpointPublishedRequest {
            job_id: self.key.0.clone(),
            generation: Some(self.key.1),
            step: self.at.step,
            url,
        };
        let call = || {
            let (mut client, request) = (self.client.clone(), published.clone());
            async move { client.checkpoint_published(request).await }
        };
        insist_for(&self.world, &self.key, &self.random, call).await?;
        self.world.acknowledged_checkpoint(&self.key.0, (self.key.1, self.at.step));
        Ok(())
    }
}
