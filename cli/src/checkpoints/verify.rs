//! `ringmaster checkpoints verify`: every byte against the manifest.

use std::time::Instant;

use ringmaster_checkpoint::browse::{Checkpoint, Finding, JobFolder, Meter, Status, Target};
use serde_json::{Value, json};

use super::{bar, open, shown};
use crate::error::Error;
use crate::{args, output};

/// Verifies one checkpoint, the newest of each job, or all.
pub(super) async fn verify(args: &args::VerifyCheckpoints) -> Result<(), Error> {
    let target = open(&args.url).await?;
    let (mut chosen, mut findings) = (Vec::new(), Vec::new());
    for job in target.jobs() {
        findings.extend(job.verify_latest().await?);
        chosen.extend(choose(&target, job, args.all).await?);
    }
    if chosen.is_empty() && findings.is_empty() {
        return Err(Error::Checkpoints {
            url: args.url.clone(),
            reason: "no complete checkpoint lies there, so there is nothing to verify".to_owned(),
            remedy: "`ringmaster checkpoints ls` shows what there is".to_owned(),
        });
    }
    let mut results = Vec::new();
    for (number, checkpoint) in chosen.iter().enumerate() {
        let place = format!("verifying {} ({} of {})", checkpoint.name(), number + 1, chosen.len());
        let (began, meter) = (Instant::now(), Meter::default());
        let total = checkpoint.payload();
        let found = bar::watch(&place, total, &meter, checkpoint.verify(&meter)).await?;
        if !args.json {
            report(checkpoint, &found, &bar::speed(total, began.elapsed()))?;
        }
        results.push((checkpoint, found));
    }
    if args.json {
        output::print_json(&as_json(&results, &findings))?;
    } else {
        for finding in &findings {
            output::print(&format!("✗ {}: {}", shown(&finding.object), finding.reason))?;
        }
    }
    let bad = results.iter().filter(|(_, found)| !found.is_empty()).count();
    match bad + findings.len() {
        0 => Ok(()),
        _ => Err(Error::NotVerified { bad, of: results.len(), latest: !findings.is_empty() }),
    }
}

/// Which checkpoints of a job are verified.
async fn choose(target: &Target, job: &JobFolder, all: bool) -> Result<Vec<Checkpoint>, Error> {
    if let Target::One(_, checkpoint) = target {
        return Ok(vec![Checkpoint::clone(checkpoint)]);
    }
    let checkpoints = job.checkpoints().await?;
    // Those that somebody may be writing, and those that nobody takes, are no news.
    let claims_to_be_good = |checkpoint: &Checkpoint| {
        matches!(checkpoint.status, Status::Complete | Status::Damaged { .. })
    };
    let count = if all { usize::MAX } else { 1 };
    Ok(checkpoints.into_iter().filter(claims_to_be_good).take(count).collect())
}

fn report(checkpoint: &Checkpoint, found: &[Finding], speed: &str) -> Result<(), Error> {
    if found.is_empty() {
        let objects = checkpoint.objects.len();
        return output::print(&format!(
            "✓ {}: {objects} objects, {speed}",
            shown(&checkpoint.url())
        ));
    }
    output::print(&format!("✗ {}:", shown(&checkpoint.url())))?;
    for finding in found {
        output::print(&format!("    {}: {}", shown(&finding.object), finding.reason))?;
    }
    Ok(())
}

fn as_json(results: &[(&Checkpoint, Vec<Finding>)], latest: &[Finding]) -> Value {
    let list = |found: &[Finding]| {
        let all = found.iter().map(|f| json!({"object": f.object, "reason": f.reason}));
        all.collect::<Value>()
    };
    let checkpoints = results.iter().map(|(checkpoint, found)| {
        json!({"url": checkpoint.url(), "good": found.is_empty(), "findings": list(found)})
    });
    json!({"checkpoints": checkpoints.collect::<Value>(), "latest_json": list(latest)})
}
