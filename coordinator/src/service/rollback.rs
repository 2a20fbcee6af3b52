//! Rolling a job back to an older checkpoint: looked for and verified before anything is given up.

use ringmaster_checkpoint::browse::{Checkpoint, Meter, Target};
use ringmaster_proto::v1;
use ringmaster_words::chain;

use crate::fleet::{Error, Handle};

/// Rolls a job back to its checkpoint of `step`.
///
/// # Errors
/// A job without such a checkpoint, one that does not verify, a store that this process cannot reach:
/// then nothing has changed. And what [`Handle::roll_back`] refuses.
pub(super) async fn roll_back(fleet: &Handle, job_id: String, step: u64) -> Result<v1::Job, Error> {
    let refused = |reason: String| Error::RollBack { job_id: job_id.clone(), step, reason };
    let job = fleet.get(job_id.clone()).await?;
    let folder = job.checkpoint_url.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    let folder = folder.ok_or_else(|| refused("the job has published no checkpoint".to_owned()))?;
    let checkpoint = find(&folder, step).await.map_err(refused)?;
    let url = checkpoint.url();

    // The job may be running: what is read here, and gone on from later, must not be cleared meanwhile.
    let _hold = fleet.hold(job_id.clone(), url.clone()).await?;
    let findings = checkpoint.verify(&Meter::default()).await;
    let findings = findings.map_err(|error| refused(chain(&error)))?;
    if let Some(finding) = findings.first() {
        let reason = format!("{} is damaged: {}", finding.object, finding.reason);
        return Err(refused(format!("{reason}; choose another step")));
    }

    let rolled_back = fleet.roll_back(job_id.clone(), url.clone(), step).await?;
    if let Some(up_to) = rolled_back.at_rest {
        // It is decided: if the store cannot be told now, the job's first rank tells it.
        if let Err(error) = ringmaster_checkpoint::roll_back(&url, up_to).await {
            tracing::warn!(%job_id, error = chain(&error), "the store does not show the roll-back yet");
        }
    }
    Ok(rolled_back.job)
}

/// Finds the newest complete checkpoint of a step, or says why there is none.
async fn find(folder: &str, step: u64) -> Result<Checkpoint, String> {
    let target = Target::open(folder).await.map_err(|error| chain(&error))?;
    let job = match target {
        Target::Job(job) | Target::One(job, _) => job,
        Target::Jobs(_) => return Err(format!("{folder} is no job's folder")),
    };
    let found = job.of_step(step).await.map_err(|error| chain(&error))?;
    let words = job.steps_in_words();
    found.ok_or_else(|| {
        format!("{folder} holds no complete checkpoint of that step; it holds {words}")
    })
}
