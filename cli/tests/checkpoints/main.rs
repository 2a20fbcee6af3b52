//! `ringmaster checkpoints` as people call it, on real files.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../../coordinator/tests/fleet/stored.rs"]
mod stored;

mod resume;
mod run;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ringmaster_proto::v1::Generation;

pub(crate) const JOB_ID: &str = "emoji-abc234";

/// A folder of jobs with one job in it.
pub(crate) struct Runs {
    root: tempfile::TempDir,
}

impl Runs {
    /// With checkpoints of these generations and steps.
    pub(crate) fn with(checkpoints: &[(u32, u64)]) -> Self {
        let runs = Self { root: tempfile::tempdir().unwrap() };
        for &(counter, step) in checkpoints {
            runs.save(JOB_ID, counter, step);
        }
        runs
    }

    pub(crate) fn save(&self, job_id: &str, counter: u32, step: u64) -> PathBuf {
        let mut models = ringmaster_manifest::ModelCatalogue::builtin();
        models.add("tiny", include_str!("../../../coordinator/tests/fleet/tiny.json")).unwrap();
        let manifest = include_str!("../../../coordinator/tests/fleet/job.json");
        let folder = std::path::Path::new("/data");
        let job = ringmaster_manifest::parse(manifest, "job.json", folder, &models).unwrap();
        let generation = Generation::new(1, counter);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let saved = stored::store(self.root(), &job, job_id, generation, step);
        PathBuf::from(runtime.block_on(saved))
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn job(&self) -> PathBuf {
        self.root().join(JOB_ID)
    }

    pub(crate) fn step(&self, counter: u32, step: u64) -> PathBuf {
        self.job().join(format!("step-{step:010}.g1.{counter}"))
    }

    /// The step a resume would take.
    pub(crate) fn newest(&self) -> Option<u64> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(stored::newest(self.root(), JOB_ID))
    }

    /// The checkpoint that latest.json names.
    pub(crate) fn latest(&self) -> Option<String> {
        let text = std::fs::read(self.job().join("latest.json")).ok()?;
        let latest: serde_json::Value = serde_json::from_slice(&text).unwrap();
        Some(latest["prefix"].as_str().unwrap().to_owned())
    }

    /// Runs `ringmaster` in the folder of jobs.
    pub(crate) fn ringmaster(&self, words: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringmaster"));
        command.args(words).current_dir(self.root()).stdin(std::process::Stdio::null());
        let models = self.root().join("models");
        if models.exists() {
            command.env("RINGMASTER_MODELS", models);
        }
        Said::of(&command.output().unwrap())
    }

    pub(crate) fn checkpoints(&self, words: &[&str]) -> Said {
        self.ringmaster(&[&["checkpoints"], words].concat())
    }
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            code: output.status.code().unwrap(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// The output of a command that did what it was asked to.
    pub(crate) fn well(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// What a command that refused said.
    pub(crate) fn refused(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.err
    }
}

/// Changes one byte of a file in the middle.
pub(crate) fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Names and contents of the files below a folder, but for the lock.
pub(crate) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}
