//! What a job may do, and will do badly.

use crate::spec::TrainJob;

/// Returns what a person should know before the job runs, each with the field to change. Nothing of it is a mistake.
pub fn advice(job: &TrainJob) -> Vec<String> {
    many_ranks(job).into_iter().collect()
}

/// Every border between two ranks that cuts a lane makes both read it.
fn many_ranks(job: &TrainJob) -> Option<String> {
    let (ranks, lanes) = (u64::from(job.resources.ranks), u64::from(job.data.lanes));
    if ranks <= lanes {
        return None;
    }
    let times = (lanes + ranks - 1) as f64 / lanes as f64;
    let enough = (4 * ranks).next_power_of_two();
    Some(format!(
        "spec.data.lanes is {lanes}, fewer than the {ranks} ranks: ranks read the same lanes, and all of them together \
         read up to {times:.1} times the data; {enough} lanes would be enough (another order of samples)"
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{ModelCatalogue, parse};

    #[test]
    fn more_ranks_than_lanes_are_told_with_what_they_cost() {
        let yaml = |ranks: u32| {
            format!(
                "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {{name: tiny}}\nspec:\n  \
                 resources: {{ranks: {ranks}}}\n  model: {{name: ViT-B-32}}\n  \
                 data: {{train: /data/a.tar, lanes: 64}}\n  loss: {{kind: siglip}}\n  \
                 optimizer: {{lr: 1e-3}}\n  schedule: {{steps: 40}}\n  batch: {{global: 4096}}\n  \
                 checkpoint: {{uri: /data/runs}}\n"
            )
        };
        let models = ModelCatalogue::builtin();
        let of = |ranks| advice(&parse(&yaml(ranks), "a.yaml", Path::new("/"), &models).unwrap());
        assert_eq!(of(64), Vec::<String>::new());
        let said = of(128).join("\n");
        assert!(
            said.contains("read up to 3.0 times the data; 512 lanes would be enough"),
            "{said}"
        );
    }
}
