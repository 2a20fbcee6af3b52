//! What lies in a job's folder: its checkpoints, and the roll-backs that gave some of them up.

use std::collections::BTreeSet;

use super::CheckpointDir;
use crate::Error;
use crate::layout::{LATEST, Rollback, StepName};

/// What lies in a job's folder, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Checkpoints, complete or not, newest first.
    pub(crate) names: Vec<StepName>,
    /// Roll-backs, in no order that matters.
    pub(crate) rollbacks: BTreeSet<Rollback>,
    /// There is a latest.json.
    pub(crate) has_latest: bool,
    /// Folders that are no checkpoints.
    pub(crate) folders: Vec<String>,
}

impl Survey {
    /// Whether a roll-back gave this checkpoint up.
    pub(crate) fn is_abandoned(&self, name: StepName) -> bool {
        self.rollbacks.iter().any(|rollback| rollback.abandons(name))
    }

    /// The roll-back that gave this checkpoint up.
    pub(crate) fn rollback_of(&self, name: StepName) -> Option<Rollback> {
        self.rollbacks.iter().rev().copied().find(|rollback| rollback.abandons(name))
    }

    /// Checkpoints that no roll-back gave up, newest first.
    pub(crate) fn standing(&self) -> Vec<StepName> {
        self.names.iter().copied().filter(|name| !self.is_abandoned(*name)).collect()
    }
}

impl CheckpointDir {
    /// Looks what lies in this folder; nothing for one that does not exist.
    pub(crate) async fn survey(&self) -> Result<Survey, Error> {
        let listed = self.store.list_with_delimiter(Some(&self.base)).await;
        let listed = listed.map_err(|source| self.store_error("list", self.url.clone(), source))?;
        let mut survey = Survey::default();
        for folder in listed.common_prefixes.iter().filter_map(|prefix| prefix.filename()) {
            match folder.parse() {
                Ok(name) => survey.names.push(name),
                Err(_) => survey.folders.push(folder.to_owned()),
            }
        }
        for object in listed.objects.iter().filter_map(|object| object.location.filename()) {
            survey.has_latest |= object == LATEST;
            survey.rollbacks.extend(object.parse::<Rollback>().ok());
        }
        survey.names.sort_by(|a, b| b.cmp(a));
        Ok(survey)
    }
}
