//! A job for unit tests.

use std::path::Path;

use ringmaster_manifest::spec::TrainJob;

/// Returns a job of so many ranks whose global batch comes from so many lanes.
pub(crate) fn job(ranks: u32, lanes: u32, global: u32) -> TrainJob {
    let text = format!(
        "apiVersion: ringmaster/v1\n\
         kind: TrainJob\n\
         metadata: {{name: tiny}}\n\
         spec:\n  \
           resources: {{ranks: {ranks}, min_ranks: 1}}\n  \
           model: {{name: ViT-B-32}}\n  \
           data: {{train: [/data/a.tar], lanes: {lanes}}}\n  \
           loss: {{kind: siglip}}\n  \
           optimizer: {{lr: 1.0e-3}}\n  \
           schedule: {{warmup_steps: 2, steps: 40}}\n  \
           batch: {{global: {global}}}\n  \
           checkpoint: {{uri: /data/checkpoints}}\n"
    );
    let models = ringmaster_manifest::ModelCatalogue::builtin();
    match ringmaster_manifest::parse(&text, "tiny.yaml", Path::new("/data"), &models) {
        Ok(job) => job,
        Err(mistakes) => panic!("{mistakes}"),
    }
}
