//! What people read when a manifest is wrong: the exact text, for every kind of mistake.
#![allow(
    clippy::print_stdout,
    reason = "seen only where a test fails, or by whoever runs it alone"
)]
#![allow(missing_docs, clippy::unwrap_used)]

mod corpus;
mod exercise;
mod golden;
mod inputs;
mod keys;
mod robust;
mod stored;
mod texts;

use std::path::{Path, PathBuf};

use ringmaster_manifest::spec::TrainJob;
use ringmaster_manifest::{Errors, ModelCatalogue};

/// Two models, so that messages do not change when the project gains one.
fn models() -> ModelCatalogue {
    let all = ModelCatalogue::builtin();
    let pick = |name: &str| (name.to_owned(), all.get(name).unwrap().clone());
    [pick("ViT-B-16"), pick("ViT-B-32")].into_iter().collect()
}

fn parse(text: &str) -> Result<TrainJob, Errors> {
    ringmaster_manifest::parse(text, "job.yaml", Path::new("/jobs"), &models())
}

fn fixture(name: &str) -> String {
    let path = project().join("crates/manifest/tests/mistakes/fixtures").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}
