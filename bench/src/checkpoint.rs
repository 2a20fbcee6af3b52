//! `bench checkpoint`: what a checkpoint costs a training run, beside a plain copy of memory and of
//! files in the same run.
//!
//! The state is made up (parameters and two moments of the given size, f32) and goes the way a
//! rank's goes: one pass that copies and hashes, then the writer in the background.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ringmaster_checkpoint::{
    self as checkpoint, DataState, Grant, GrantError, Memory, Snapshot, State, Writer,
    WriterOptions,
};
use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1::{Generation, StoredObject};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{median, memory};
use ringmaster_worker::model::{Entry, Role, Tower};
use ringmaster_worker::replica::snapshot::{Portion, capture};

/// Parameters of the made-up tensors; a ViT-B's largest have a few millions.
const TENSOR: usize = 2_359_296;
/// Folder of the made-up job below the place.
const JOB_ID: &str = "bench-aaaaaa";
/// Longest wait for the writer to let go of its memory.
const PATIENCE: Duration = Duration::from_secs(600);

/// The command line of `bench checkpoint`.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckpointArgs {
    /// Parameters, such as 150M: the state has three values of 4 bytes for each.
    #[arg(long, default_value = "150M", value_parser = count)]
    params: usize,
    /// Where to write: a URL or a path. Default: a folder of its own in the temporary directory.
    #[arg(long)]
    uri: Option<String>,
    /// Checkpoints that are written and read; figures are medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// libtorch threads, which also copy and hash.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
}

/// Reads a count with an optional K, M or G.
fn count(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'M') => (&text[..text.len() - 1], 1e6),
        Some(b'G') => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    match digits.parse::<f64>().map(|number| number * factor) {
        Ok(number) if (1.0..1e12).contains(&number) => Ok(number as usize),
        _ => Err("write a number of parameters from 1 to 1e12, such as 150M".to_owned()),
    }
}

/// Runs the bench and prints its result as one line of JSON.
///
/// # Errors
/// The place cannot be written or read.
pub fn run(args: &CheckpointArgs) -> anyhow::Result<()> {
    tch::set_num_threads(args.threads as i32);
    let own = tempfile::tempdir().context("cannot make a folder in the temporary directory")?;
    let uri = match &args.uri {
        Some(uri) if uri.contains("://") => uri.clone(),
        Some(path) => fs::canonicalize(path)
            .with_context(|| format!("cannot find the folder {path}"))?
            .to_string_lossy()
            .into_owned(),
        None => own.path().to_string_lossy().into_owned(),
    };
    let bench = Bench::new(args, uri);
    let result = bench.measure()?;
    let line = result.to_string() + "\n";
    std::io::stdout().lock().write_all(line.as_bytes()).context("cannot write the result")
}

struct Bench {
    repeats: u32,
    threads: usize,
    uri: String,
    /// Parameters, first moments, second moments.
    state: [Tensor; 3],
    /// As much memory again, for the plain copy.
    spare: [Tensor; 3],
    portion: Portion,
    job: TrainJob,
}

/// One way round: write, then read.
#[derive(Default)]
struct Round {
    /// A plain copy of the state.
    copy: f64,
    /// The snapshot until training goes on.
    stall: f64,
    /// From the snapshot to the published checkpoint.
    write: f64,
    /// Reading, verifying and opening it.
    read: f64,
    /// Copying its files with an fsync each, and reading them; local places only.
    files: Option<(f64, f64)>,
}

impl Bench {
    fn new(args: &CheckpointArgs, uri: String) -> Self {
        let entries = entries(args.params);
        let options = (Kind::Float, Device::Cpu);
        let state = [0, 1, 2].map(|_| Tensor::rand([args.params as i64], options));
        let spare = [0, 1, 2].map(|_| Tensor::ones([args.params as i64], options));
        let portion = Portion::new(&entries, args.params, Kind::Float, 0, 1);
        let (repeats, threads) = (args.repeats, args.threads as usize);
        Self { repeats, threads, uri, state, spare, portion, job: job() }
    }

    fn measure(&self) -> anyhow::Result<serde_json::Value> {
        let memory = Memory::default();
        let bytes = self.portion.layout.len;
        // Once through everything, in which nothing is measured but the memory it takes.
        let (_, peak) = memory::peak_of(|| {
            memory.reserve(bytes);
            self.write(&memory, 1)
        })?;
        let mut rounds = Vec::new();
        for repeat in 0..self.repeats {
            // Whoever writes first after a pause may have to wait for fresh pages, in a virtual machine
            // above all: they take turns.
            let files_first = repeat % 2 == 1;
            let earlier = if files_first { self.plain_files()? } else { None };
            let mut round = self.write(&memory, u64::from(repeat) + 2)?;
            self.read(&mut round)?;
            round.files = if files_first { earlier } else { self.plain_files()? };
            rounds.push(round);
        }
        let middle = |of: &dyn Fn(&Round) -> f64| median(rounds.iter().map(of).collect());
        let over = |of: &dyn Fn(&Round) -> Option<f64>| {
            let ratios: Option<Vec<f64>> = rounds.iter().map(of).collect();
            ratios.map(median)
        };
        let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
        Ok(json!({
            "params": self.state[0].numel(),
            "state_bytes": bytes,
            "place": self.uri.split("://").next().filter(|_| self.uri.contains("://")).unwrap_or("file"),
            "repeats": self.repeats,
            "threads": self.threads,
            "copy_seconds": middle(&|r| r.copy),
            "stall_seconds": middle(&|r| r.stall),
            "stall_over_copy": over(&|r| Some(r.stall / r.copy)),
            "write_seconds": middle(&|r| r.write),
            "write_gigabytes_per_second": rate(middle(&|r| r.write)),
            "read_seconds": middle(&|r| r.read),
            "read_gigabytes_per_second": rate(middle(&|r| r.read)),
            "file_copy_seconds": over(&|r| r.files.map(|f| f.0)),
            "file_read_seconds": over(&|r| r.files.map(|f| f.1)),
            "write_rate_over_file_copy": over(&|r| r.files.map(|f| f.0 / r.write)),
            "read_rate_over_file_read": over(&|r| r.files.map(|f| f.1 / r.read)),
            "peak_bytes": peak,
            "peak_over_state": peak as f64 / bytes as f64,
        }))
    }

    /// Copies memory plainly, takes a snapshot and waits until it is published.
    fn write(&self, memory: &Memory, step: u64) -> anyhow::Result<Round> {
        let mut round = Round::default();
        let began = Instant::now();
        for (to, from) in self.spare.iter().zip(&self.state) {
            to.shallow_clone().copy_(from);
        }
        round.copy = began.elapsed().as_secs_f64();

        let grant = Arc::new(Alone::default());
        let mut writer = Writer::new(WriterOptions {
            uri: self.uri.clone(),
            job_id: JOB_ID.to_owned(),
            generation: Generation::new(1, 1),
            rank: 0,
            world_size: 1,
            keep_last: 1,
            keep_every: None,
            spared: Vec::new(),
            grant: Arc::clone(&grant) as Arc<dyn Grant>,
        });
        let len = self.portion.layout.len;
        settle();
        // A run reserves its memory long before the first snapshot.
        drop(memory.take(len, PATIENCE).context("the memory was not given back")?);
        let began = Instant::now();
        let mut buffer = memory.take(len, Duration::ZERO).context("the memory is lent out")?;
        let buffers = [&self.state[0], &self.state[1], &self.state[2]];
        let digest = capture(step, buffers, &self.portion, &mut buffer, self.threads);
        let state = self.describe(step);
        let layout = Arc::clone(&self.portion.layout);
        let bytes = buffer.filled();
        writer.save(Snapshot { step, layout, bytes, state: Some(state), digest });
        round.stall = began.elapsed().as_secs_f64();
        match writer.finish().context("the checkpoint was not written")? {
            Some(published) if published.step == step => {}
            other => bail!("step {step} was not published, but {other:?}"),
        }
        let published = grant.published.lock().unwrap_or_else(PoisonError::into_inner).take();
        round.write = (published.context("nobody was told")? - began).as_secs_f64();
        Ok(round)
    }

    fn describe(&self, step: u64) -> State {
        let plan = json!({});
        let versions = std::collections::BTreeMap::new();
        let generation = Generation::new(1, 1);
        let mut state =
            State::describe(&self.job, generation, 1, plan, DataState::default(), versions);
        state.advance_to(step);
        state
    }

    /// Reads the newest checkpoint.
    fn read(&self, round: &mut Round) -> anyhow::Result<()> {
        let place = checkpoint::job_url(&self.uri, JOB_ID);
        let began = Instant::now();
        let chosen = checkpoint::choose(&[&place])?.context("nothing was published")?;
        let url = chosen.url();
        let loaded = chosen.load()?;
        round.read = began.elapsed().as_secs_f64();
        black_box((&loaded, &url));
        Ok(())
    }

    /// Copies and reads the files of the newest checkpoint plainly, where they are files.
    fn plain_files(&self) -> anyhow::Result<Option<(f64, f64)>> {
        let place = checkpoint::job_url(&self.uri, JOB_ID);
        let Some(job) = local(&place) else { return Ok(None) };
        let steps = fs::read_dir(&job)?.collect::<Result<Vec<_>, _>>()?;
        let newest = steps.iter().map(fs::DirEntry::path).filter(|path| path.is_dir()).max();
        let folder = newest.context("nothing was published")?;
        Ok(Some((copy_files(&folder)?, read_files(&folder)?)))
    }
}

/// The folder of a local place.
fn local(url: &str) -> Option<PathBuf> {
    match url.strip_prefix("file://") {
        Some(path) => Some(path.into()),
        None => url.starts_with('/').then(|| url.into()),
    }
}

/// Lets the disk finish what earlier rounds wrote and deleted, so that no round pays for another.
fn settle() {
    nix::unistd::sync();
}

/// Copies every file of a folder beside itself, durably, and returns the seconds.
fn copy_files(folder: &Path) -> anyhow::Result<f64> {
    let to = tempfile::tempdir_in(folder.parent().context("a checkpoint lies in a folder")?)?;
    settle();
    let began = Instant::now();
    for entry in fs::read_dir(folder)? {
        let from = entry?.path();
        let copy = to.path().join(from.file_name().context("files have names")?);
        fs::copy(&from, &copy).with_context(|| format!("cannot copy {}", from.display()))?;
        File::open(&copy)?.sync_all()?;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Reads every file of a folder into memory of its own, and returns the seconds.
fn read_files(folder: &Path) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut contents = Vec::new();
    for entry in fs::read_dir(folder)? {
        let mut content = Vec::new();
        File::open(entry?.path())?.read_to_end(&mut content)?;
        contents.push(content);
    }
    let seconds = began.elapsed().as_secs_f64();
    black_box(&contents);
    Ok(seconds)
}

/// Cuts the parameters into tensors.
fn entries(params: usize) -> Vec<Entry> {
    let starts = (0..params).step_by(TENSOR);
    let entry = |(index, offset): (usize, usize)| {
        let len = TENSOR.min(params - offset);
        Entry {
            name: format!("visual.transformer.resblocks.{index}.mlp.c_fc.weight"),
            shape: vec![len as i64],
            offset,
            len,
            tower: Tower::Image,
            decay: true,
            role: Role::Parameter,
        }
    };
    starts.enumerate().map(entry).collect()
}

/// A job for state.json; nothing of it is used.
fn job() -> TrainJob {
    let text = "\
apiVersion: ringmaster/v1
kind: TrainJob
metadata: {name: bench}
spec:
  model: {name: ViT-B-32}
  data: {train: [/none.tar]}
  loss: {kind: siglip}
  optimizer: {lr: 1.0e-3}
  schedule: {kind: cosine, warmup_steps: 2, steps: 40}
  batch: {global: 64}
  checkpoint: {uri: /none}
";
    let models = ringmaster_manifest::ModelCatalogue::builtin();
    ringmaster_manifest::parse(text, "bench.yaml", Path::new("/"), &models)
        .unwrap_or_else(|mistakes| unreachable!("this manifest is right: {mistakes}"))
}

/// The coordinator's part where there is one rank and one generation.
#[derive(Debug, Default)]
struct Alone {
    objects: Mutex<Vec<StoredObject>>,
    /// When the checkpoint could be seen; what retention then deletes is not counted.
    published: Mutex<Option<Instant>>,
}

impl Grant for Alone {
    fn report_shard(&self, _step: u64, objects: Vec<StoredObject>) -> Result<(), GrantError> {
        *self.objects.lock().unwrap_or_else(PoisonError::into_inner) = objects;
        Ok(())
    }

    fn report_failure(&self, _step: u64, _reason: &str) -> Result<(), GrantError> {
        Ok(())
    }

    fn commit(&self, _step: u64, _digest: u64) -> Result<Vec<StoredObject>, GrantError> {
        Ok(self.objects.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn published(&self, _step: u64, _url: &str) -> Result<(), GrantError> {
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn counts_may_be_written_short() {
        assert_eq!(count("150M"), Ok(150_000_000));
        assert_eq!(count("1.5K"), Ok(1500));
        assert_eq!(count("7"), Ok(7));
        assert!(count("many").is_err() && count("0").is_err());
    }

    #[test]
    fn a_small_state_is_written_read_and_held_against_copies() {
        let folder = tempfile::tempdir().unwrap();
        let args = CheckpointArgs { params: 100_003, uri: None, repeats: 2, threads: 2 };
        let result =
            Bench::new(&args, folder.path().to_str().unwrap().to_owned()).measure().unwrap();
        assert_eq!(result["state_bytes"], 12 * 100_003);
        for key in ["stall_over_copy", "write_rate_over_file_copy", "read_rate_over_file_read"] {
            assert!(result[key].as_f64().unwrap() > 0.0, "{key}: {result}");
        }
    }
}
