//! A small job, snapshots of it, a coordinator in memory, and writers that die on demand.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1::{Generation, StoredObject};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::write::publish::{Phase, Publisher};
use crate::*;

pub(crate) const JOB_ID: &str = "tiny-abc234";

const MANIFEST: &str = "\
apiVersion: ringmaster/v1
kind: TrainJob
metadata: {name: tiny}
spec:
  resources: {ranks: 2}
  model: {name: ViT-B-32}
  data: {train: [/data/a.tar], lanes: 8}
  loss: {kind: siglip}
  optimizer: {lr: 1.0e-3}
  schedule: {kind: cosine, warmup_steps: 2, steps: 40}
  batch: {global: 64}
  checkpoint: {uri: /data/checkpoints}
";

pub(crate) fn job() -> TrainJob {
    let models = ringmaster_manifest::ModelCatalogue::builtin();
    match ringmaster_manifest::parse(MANIFEST, "tiny.yaml", Path::new("/data"), &models) {
        Ok(job) => job,
        Err(mistakes) => panic!("{mistakes}"),
    }
}

/// A process that dies before the phase number `at`, counted from 0 over its life.
#[derive(Debug)]
pub(crate) struct Crash {
    at: usize,
    entered: AtomicUsize,
}

impl Default for Crash {
    fn default() -> Self {
        Self::at(usize::MAX)
    }
}

impl Crash {
    pub(crate) fn at(at: usize) -> Self {
        Self { at, entered: AtomicUsize::new(0) }
    }

    /// Once dead it stays dead: nothing tidies up.
    pub(crate) fn strike(&self, phase: Phase) -> Result<(), Error> {
        if self.entered.fetch_add(1, Ordering::Relaxed) < self.at {
            return Ok(());
        }
        let reason = format!("died before {phase:?}");
        Err(Error::Damaged { object: "this process".to_owned(), reason })
    }
}

/// The coordinator's part for one generation, shared by its ranks.
#[derive(Debug)]
pub(crate) struct Coordinator {
    world_size: usize,
    pub(crate) refuses: Option<&'static str>,
    shards: Mutex<BTreeMap<u64, Vec<Vec<StoredObject>>>>,
    reported: Condvar,
    pub(crate) announced: Mutex<Vec<(u64, String)>>,
    pub(crate) commits: AtomicUsize,
}

impl Coordinator {
    pub(crate) fn new(world_size: usize) -> Self {
        Self {
            world_size,
            refuses: None,
            shards: Mutex::default(),
            reported: Condvar::new(),
            announced: Mutex::default(),
            commits: AtomicUsize::new(0),
        }
    }

    fn allow(&self, call: &str) -> Result<(), GrantError> {
        match self.refuses {
            Some(refused) if refused == call => {
                Err(GrantError { reason: "generation g1.1 is over, g1.2 is current".to_owned() })
            }
            _ => Ok(()),
        }
    }
}

impl Grant for Coordinator {
    fn report_shard(&self, step: u64, objects: Vec<StoredObject>) -> Result<(), GrantError> {
        self.allow("report_shard")?;
        self.shards.lock().unwrap().entry(step).or_default().push(objects);
        self.reported.notify_all();
        Ok(())
    }

    fn report_failure(&self, _step: u64, _reason: &str) -> Result<(), GrantError> {
        Ok(())
    }

    fn commit(&self, step: u64, _digest: u64) -> Result<Vec<StoredObject>, GrantError> {
        self.allow("commit")?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        let waiting = |shards: &mut BTreeMap<u64, Vec<_>>| {
            shards.get(&step).is_none_or(|shards| shards.len() < self.world_size)
        };
        let (shards, timeout) = self
            .reported
            .wait_timeout_while(self.shards.lock().unwrap(), Duration::from_secs(120), waiting)
            .unwrap();
        assert!(!timeout.timed_out(), "a rank never reported its shard");
        Ok(shards[&step].concat())
    }

    fn published(&self, step: u64, url: &str) -> Result<(), GrantError> {
        self.allow("published")?;
        self.announced.lock().unwrap().push((step, url.to_owned()));
        Ok(())
    }
}

pub(crate) fn options(
    uri: &str,
    counter: u32,
    rank: usize,
    world_size: usize,
    grant: Arc<dyn Grant>,
) -> WriterOptions {
    let generation = Generation::new(1, counter);
    let (uri, job_id) = (uri.to_owned(), JOB_ID.to_owned());
    WriterOptions {
        uri,
        job_id,
        generation,
        rank,
        world_size,
        keep_last: 2,
        keep_every: None,
        spared: Vec::new(),
        grant,
    }
}

/// The parameters of a tiny model, as (name, shape).
const PARAMETERS: [(&str, &[i64]); 4] = [
    ("visual.conv1.weight", &[3, 2, 2]),
    ("ln.bias", &[5]),
    ("token", &[4, 3]),
    ("logit_scale", &[]),
];

/// A value that tells parameter, element, step and buffer.
fn value(parameter: usize, element: usize, step: u64, buffer: usize) -> f32 {
    (step * 1000 + parameter as u64 * 100 + element as u64) as f32 + buffer as f32 / 4.0
}

fn values(parameter: usize, range: std::ops::Range<usize>, step: u64, buffer: usize) -> Vec<f32> {
    range.map(|element| value(parameter, element, step, buffer)).collect()
}

/// What rank `rank` of `world_size` saves at `step`: its slice of the flat state, as ranks do it.
pub(crate) fn snapshot(counter: u32, step: u64, rank: usize, world_size: usize) -> Snapshot {
    let len = |shape: &[i64]| shape.iter().product::<i64>() as usize;
    let total: usize = PARAMETERS.iter().map(|(_, shape)| len(shape)).sum();
    let slice = total * rank / world_size..total * (rank + 1) / world_size;
    let first = rank == 0;
    let (mut bytes, mut layout, mut offset) = (Vec::new(), Layout::default(), 0);
    let mut append = |values: Vec<f32>| {
        let start = bytes.len();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        start..bytes.len()
    };
    for (p, (name, shape)) in PARAMETERS.into_iter().enumerate() {
        if first {
            let bytes = append(values(p, 0..len(shape), step, 0));
            let (name, shape) = (name.to_owned(), shape.to_vec());
            layout.model.push(Part { name, shape, dtype: Dtype::F32, bytes });
        }
        let start = slice.start.max(offset);
        let end = slice.end.min(offset + len(shape));
        if start < end {
            let part = start - offset..end - offset;
            for (buffer, moment) in Moment::ALL.into_iter().enumerate() {
                let bytes = append(values(p, part.clone(), step, buffer + 1));
                let part = Part::moment(moment, name, part.start, part.len(), Dtype::F32, bytes);
                layout.optim.push(part);
            }
        }
        offset += len(shape);
    }
    layout.len = bytes.len();
    let generation = Generation::new(1, counter);
    let mut state = State::describe(
        &job(),
        generation,
        world_size,
        json!({}),
        DataState { fingerprint: "fp".to_owned(), ..DataState::default() },
        BTreeMap::new(),
    );
    state.advance_to(step);
    Snapshot {
        step,
        layout: Arc::new(layout),
        bytes: bytes.into(),
        state: first.then_some(state),
        digest: step,
    }
}

/// Checks every value of a checkpoint of `step`.
pub(crate) fn assert_is(loaded: &Loaded, step: u64) {
    assert_eq!(loaded.state.step, step);
    assert_eq!(loaded.parameters().count(), PARAMETERS.len());
    for (p, (name, shape)) in PARAMETERS.into_iter().enumerate() {
        let len = shape.iter().product::<i64>() as usize;
        let expected = |buffer| values(p, 0..len, step, buffer);
        let parameter = loaded.parameter(name).unwrap();
        assert_eq!(
            (parameter.shape(), parameter.to_f32()),
            (shape.to_vec(), expected(0)),
            "{name}"
        );
        for (buffer, moment) in Moment::ALL.into_iter().enumerate() {
            let mut found = Vec::new();
            for (start, part) in loaded.moment(moment, name) {
                assert_eq!(start, found.len());
                found.extend(part.to_f32());
            }
            assert_eq!(found, expected(buffer + 1), "{name}");
        }
    }
}

/// Returns a rank 0 of one, which dies at `crash`.
pub(crate) fn publisher(uri: &str, counter: u32, crash: Crash) -> Publisher {
    let options = options(uri, counter, 0, 1, Arc::new(Coordinator::new(1)));
    let mut publisher = Publisher::new(options, CancellationToken::new()).unwrap();
    publisher.crash = crash;
    publisher
}

/// Publishes the checkpoint of one step by a world of one.
pub(crate) fn publish(uri: &str, counter: u32, step: u64) -> Published {
    publisher(uri, counter, Crash::default()).publish(snapshot(counter, step, 0, 1)).unwrap()
}
