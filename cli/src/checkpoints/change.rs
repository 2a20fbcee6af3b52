//! `ringmaster checkpoints rm`, `copy` and `export`.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use ringmaster_checkpoint::browse::{Checkpoint, Destination, JobFolder, Meter, Status, Target};

use super::{bar, bytes, one, open, several, shown};
use crate::error::Error;
use crate::location::location;
use crate::{args, output};
use ringmaster_words::thousands;

/// Deletes checkpoints, after asking.
pub(super) async fn rm(args: &args::RmCheckpoints) -> Result<(), Error> {
    for url in &args.urls {
        let (job, checkpoint) = match open(url).await? {
            Target::One(job, checkpoint) => (job, *checkpoint),
            Target::Job(job) => {
                return Err(refused(
                    url,
                    format!("a job's folder, which holds {}", job.steps_in_words()),
                    "name one checkpoint; `ringmaster checkpoints ls` lists them",
                ));
            }
            Target::Jobs(jobs) => return Err(several(url, &jobs)),
        };
        if !args.force {
            check_rm(url, &job, &checkpoint).await?;
        }
        if !args.yes && !confirmed(url, &checkpoint).await? {
            output::error_line("nothing was deleted");
            return Ok(());
        }
        job.remove(&checkpoint).await?;
        output::print(&format!("deleted {}", shown(&checkpoint.url())))?;
    }
    Ok(())
}

/// Refuses what would leave a job with nothing to go on from, or take something away from its writer.
async fn check_rm(url: &str, job: &JobFolder, checkpoint: &Checkpoint) -> Result<(), Error> {
    if job.is_last(checkpoint).await? {
        return Err(refused(
            url,
            "the only complete checkpoint of its job".to_owned(),
            "`ringmaster checkpoints copy` it elsewhere first, or pass --force",
        ));
    }
    let newest = job.newest().await?;
    let is_above = newest.is_none_or(|newest| {
        (checkpoint.generation(), checkpoint.step()) > (newest.generation(), newest.step())
    });
    if checkpoint.status == Status::Unfinished && is_above {
        return Err(refused(
            url,
            "unfinished and above every complete one, so it may be being written now".to_owned(),
            "pass --force if its job has ended",
        ));
    }
    Ok(())
}

fn refused(url: &str, reason: String, remedy: &str) -> Error {
    Error::Checkpoints { url: url.to_owned(), reason, remedy: remedy.to_owned() }
}

/// Asks on the terminal; without one there is nobody to ask.
async fn confirmed(url: &str, checkpoint: &Checkpoint) -> Result<bool, Error> {
    if !std::io::stdin().is_terminal() {
        let reason = "nobody can be asked whether to delete it".to_owned();
        return Err(refused(url, reason, "pass --yes"));
    }
    let (size, state) = (bytes(checkpoint.size()), checkpoint.status.word());
    let question = format!("delete {} ({state}, {size})? [y/N] ", shown(&checkpoint.url()));
    let asked = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        let mut stderr = std::io::stderr().lock();
        stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush())?;
        std::io::stdin().read_line(&mut answer)?;
        Ok(answer)
    });
    let answer: std::io::Result<String> = asked.await.unwrap_or_else(|_| Ok(String::new()));
    let answer = answer.map_err(|source| Error::io("read the answer", source))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Copies one checkpoint, or all complete ones of a job, into a job's folder elsewhere.
pub(super) async fn copy(args: &args::CopyCheckpoints) -> Result<(), Error> {
    let chosen = match (open(&args.from).await?, args.all) {
        (Target::Job(job), true) => {
            let mut all = job.checkpoints().await?;
            all.retain(|checkpoint| checkpoint.status == Status::Complete);
            // Oldest first: what lies there is at every moment a state the job once had.
            all.reverse();
            all
        }
        (Target::Jobs(jobs), _) => return Err(several(&args.from, &jobs)),
        _ => vec![one(&args.from).await?.1],
    };
    let to = Destination::open(&location(&args.to)?).await?;
    for checkpoint in chosen {
        let (began, meter) = (Instant::now(), Meter::default());
        let doing = format!("copying {} to {}", checkpoint.name(), shown(&location(&args.to)?));
        let total = checkpoint.payload();
        let copied = bar::watch(&doing, total, &meter, checkpoint.copy_to(&to, &meter)).await;
        let copied = copied.inspect_err(|error| {
            if error.is_interruption() {
                output::error_line(
                    "no checkpoint is visible there yet; the same command goes on where this one was",
                );
            }
        })?;
        let kept = match (copied.copied, copied.kept) {
            (_, 0) => String::new(),
            (0, _) => " (it lay there already)".to_owned(),
            (_, kept) => format!(" ({kept} objects lay there already)"),
        };
        let speed = bar::speed(total, began.elapsed());
        output::print(&format!("copied and verified {}: {speed}{kept}", shown(&copied.url)))?;
    }
    Ok(())
}

/// Writes the model alone, as OpenCLIP loads it.
pub(super) async fn export(args: &args::ExportCheckpoint) -> Result<(), Error> {
    let (_, checkpoint) = one(&args.url).await?;
    let file = location(&args.file)?;
    let (began, meter) = (Instant::now(), Meter::default());
    let doing = format!("exporting the model of step {}", thousands(checkpoint.step()));
    let work = checkpoint.export(&file, args.force, &meter);
    let size = bar::watch(&doing, checkpoint.model_size(), &meter, work).await?;
    let speed = bar::speed(size, began.elapsed());
    let step = thousands(checkpoint.step());
    output::print(&format!("wrote {} (step {step}, verified): {speed}", shown(&file)))
}
