//! Checkpoints that really lie in a folder, for what looks at them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ringmaster_checkpoint::{
    DataState, Dtype, Grant, GrantError, Layout, Moment, Part, Snapshot, State, Writer,
    WriterOptions, choose,
};
use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1::{Generation, StoredObject};

/// A coordinator that takes everything.
#[derive(Default)]
struct Generous(Mutex<Vec<StoredObject>>);

impl Grant for Generous {
    fn report_shard(&self, _step: u64, objects: Vec<StoredObject>) -> Result<(), GrantError> {
        *self.0.lock().unwrap() = objects;
        Ok(())
    }

    fn report_failure(&self, step: u64, reason: &str) -> Result<(), GrantError> {
        panic!("step {step} could not be stored: {reason}");
    }

    fn commit(&self, _step: u64, _digest: u64) -> Result<Vec<StoredObject>, GrantError> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn published(&self, _step: u64, _url: &str) -> Result<(), GrantError> {
        Ok(())
    }
}

/// Stores a tiny checkpoint of a job below `folder` and returns its URL.
pub(crate) async fn store(
    folder: &Path,
    job: &TrainJob,
    job_id: &str,
    generation: Generation,
    step: u64,
) -> String {
    store_at(folder, job, job_id, generation, step, None).await
}

/// As [`store`]; the checkpoint says when it was saved, if that is given.
pub(crate) async fn store_at(
    folder: &Path,
    job: &TrainJob,
    job_id: &str,
    generation: Generation,
    step: u64,
    saved_at_ms: Option<i64>,
) -> String {
    let options = WriterOptions {
        uri: folder.to_str().unwrap().to_owned(),
        job_id: job_id.to_owned(),
        generation,
        rank: 0,
        world_size: 1,
        keep_last: 99,
        keep_every: None,
        spared: Vec::new(),
        grant: Arc::new(Generous::default()),
    };
    let job = job.clone();
    let write = move || {
        let nothing = serde_json::json!({});
        let mut state = State::describe(
            &job,
            generation,
            1,
            nothing,
            DataState { order: 2, fingerprint: "fp".to_owned(), ..DataState::default() },
            BTreeMap::new(),
        );
        state.advance_to(step);
        state.saved_at_ms = saved_at_ms;
        let mut bytes = Vec::new();
        let mut value = || {
            bytes.extend((step as f32).to_le_bytes());
            bytes.len() - 4..bytes.len()
        };
        let (name, shape, dtype) = ("w".to_owned(), vec![1], Dtype::F32);
        let model = vec![Part { name, shape, dtype, bytes: value() }];
        let moments = Moment::ALL.map(|moment| Part::moment(moment, "w", 0, 1, dtype, value()));
        let layout = Layout { model, optim: moments.to_vec(), len: bytes.len() };
        let snapshot = Snapshot {
            step,
            layout: Arc::new(layout),
            bytes: bytes.into(),
            state: Some(state),
            digest: 7,
        };
        let mut writer = Writer::new(options);
        let _ = writer.save(snapshot);
        writer.finish().unwrap().unwrap().url
    };
    tokio::task::spawn_blocking(write).await.unwrap()
}

/// The step that a resume from this job's folder would take.
pub(crate) async fn newest(folder: &Path, job_id: &str) -> Option<u64> {
    let url = folder.join(job_id).to_str().unwrap().to_owned();
    let choose = move || choose(&[&url]).unwrap().map(|chosen| chosen.load().unwrap().state.step);
    tokio::task::spawn_blocking(choose).await.unwrap()
}
