//! `ringmaster validate`: what can be said of a manifest without running anything.

use std::path::PathBuf;

use indicatif::BinaryBytes;
use ringmaster_data::Dataset;
use ringmaster_manifest::spec::TrainJob;
use ringmaster_words::thousands;

use crate::error::Error;
use crate::job_file::JobFile;
use crate::output;

/// Checks every manifest, and says what is wrong with each; with `data` its training data is opened, too.
pub(crate) fn run(manifests: &[PathBuf], data: bool) -> Result<(), Error> {
    let mut first_error = None;
    for path in manifests {
        let checked = JobFile::read(path).and_then(|file| {
            let about = data.then(|| file.check_data().and_then(|()| on_a_thread(&file.job)));
            Ok((file, about.transpose()?))
        });
        match checked {
            Ok((file, about)) => {
                output::print(&format!("{}: ok: {}", path.display(), file.headline()))?;
                if let Some(about) = about {
                    output::print(&format!("{}: {about}", path.display()))?;
                }
                file.advise();
                if let Err(missing) = file.check_data() {
                    output::error_line(&format!("warning: {}: {missing}", path.display()));
                }
            }
            Err(error) => {
                if let Some(earlier) = first_error.replace(error) {
                    output::error_chain(&earlier);
                }
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// As [`open`]: stores are waited for on threads that belong to no runtime.
fn on_a_thread(job: &TrainJob) -> Result<String, Error> {
    std::thread::scope(|scope| match scope.spawn(|| open(job)).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Opens the training data as ranks do; returns how much there is and what it takes.
fn open(job: &TrainJob) -> Result<String, Error> {
    let opened = Dataset::open(&job.data, job.batch.global.into());
    let dataset = opened.map_err(ringmaster_dataset::Error::Data)?;
    let ranks = u64::from(job.resources.ranks);
    let blocks = dataset.pool_bytes(1.0 / ranks as f64);
    if let Some(memory) = job.data.memory.filter(|memory| *memory < blocks) {
        let (memory, needed) = (BinaryBytes(memory).to_string(), BinaryBytes(blocks).to_string());
        return Err(Error::Memory { memory, needed, ranks });
    }
    let epochs = job.total_samples() as f64 / dataset.len().max(1) as f64;
    let mut text = format!(
        "data: {} samples in {} shards, {epochs:.2} times; a rank keeps up to {} of blocks in memory",
        thousands(dataset.len()),
        thousands(dataset.shards() as u64),
        BinaryBytes(blocks),
    );
    if ranks > 1 {
        text.push_str(&format!(", all {ranks} ranks on one node {}", BinaryBytes(ranks * blocks)));
    }
    for damaged in dataset.damaged() {
        text.push_str(&format!("; {}: {}", damaged.url, damaged.reason));
    }
    Ok(text)
}
