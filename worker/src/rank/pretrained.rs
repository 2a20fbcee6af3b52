//! Weights that a run starts from at step 0: of a whole model, and of towers by themselves.

use std::path::Path;

use ringmaster_checkpoint as checkpoint;
use ringmaster_weights::Weights;

use super::Error;
use super::error::chain;
use super::train::Rank;
use crate::factory::load::MissingBias;
use crate::factory::source::{self, Source};
use crate::factory::{self, tower, training};
use crate::model::Tower;

impl Rank {
    /// Loads what the manifest names; nothing else of where weights come from is taken.
    pub(super) fn load_pretrained(&mut self) -> Result<(), Error> {
        let model = self.job.model.clone();
        if let Some(given) = &model.pretrained {
            self.load_model(&model.name, given).map_err(of("spec.model.pretrained"))?;
        }
        if let Some(given) = &model.pretrained_image {
            let place = of("spec.model.pretrained_image");
            self.load_tower(Tower::Image, &model.name, given).map_err(place)?;
        }
        let base = tower::base_of(&model.config.text_cfg).filter(|_| model.pretrained.is_none());
        let given = model.pretrained_text.or(base);
        if let Some(given) = given.filter(|given| given != tower::NONE) {
            let place = of("spec.model.pretrained_text");
            self.load_tower(Tower::Text, &model.name, &given).map_err(place)?;
        }
        Ok(())
    }

    /// Goes on from a training checkpoint of OpenCLIP's, with its moments and its step.
    pub(super) fn load_training(&mut self, place: &str) -> Result<(), Error> {
        let failed = |what: String| Error::Checkpoint { what: format!("{place}: {what}") };
        let found = source::find(&self.job.model.name, place);
        let Source::File(path) = found.map_err(|error| failed(chain(&error)))?.source else {
            return Err(failed("it is a run's folder; expected an epoch_N.pt".to_owned()));
        };
        let file = Weights::open(&path).map_err(|error| failed(chain(&error)))?;
        let global_batch = u64::from(self.job.batch.global);
        let resumed = self.replica.load_training(&file, global_batch);
        let resumed = resumed.map_err(|error| failed(chain(&error)))?;
        tracing::info!(
            place,
            step = resumed.step,
            epoch = resumed.epoch,
            samples = self.replica.resumed_samples,
            notes = resumed.notes.join("; "),
            "going on from OpenCLIP's training checkpoint; the order of samples is this job's own"
        );
        let departures = training::departures(&resumed.groups, &self.job.optimizer);
        if !departures.is_empty() {
            tracing::warn!(departures = departures.join("; "), "the optimizer is another one now");
        }
        Ok(())
    }

    fn load_model(&mut self, model: &str, given: &str) -> Result<(), String> {
        let found = source::find(model, given).map_err(|error| chain(&error))?;
        match found.source {
            Source::File(path) => self.load_file(&path, found.tag.map(|tag| tag.quick_gelu)),
            Source::Checkpoint(loaded) => self.load_checkpoint(given, &loaded),
        }
    }

    /// Weights of another run.
    fn load_checkpoint(&mut self, url: &str, loaded: &checkpoint::Loaded) -> Result<(), String> {
        let trained = &loaded.state.manifest.model.config;
        self.check_gelu(url, Some(trained.quick_gelu))?;
        let kept = self.replica.load_weights(loaded).map_err(|what| format!("{url}: {what}"))?;
        tracing::info!(
            url,
            step = loaded.state.step,
            initial = kept.join(", "),
            differs = factory::differs(trained, self.replica.clip.config()),
            "weights of another run; what it does not have stays as it was drawn"
        );
        Ok(())
    }

    /// Weights in a file of any format, as OpenCLIP's `--pretrained FILE`.
    fn load_file(&mut self, path: &Path, quick_gelu: Option<bool>) -> Result<(), String> {
        let weights = Weights::open(path).map_err(|error| chain(&error))?;
        let trained = quick_gelu.or(factory::gelu_of(&weights));
        self.check_gelu(&path.display().to_string(), trained)?;
        let notes = factory::from_file(&self.replica.clip, &weights, MissingBias::Kept)
            .map_err(|error| chain(&error))?;
        self.replica.pristine = false;
        tracing::info!(path = %path.display(), notes = notes.join("; "), "weights of a file");
        Ok(())
    }

    fn load_tower(&mut self, tower: Tower, model: &str, given: &str) -> Result<(), String> {
        let notes =
            tower::load(&self.replica.clip, tower, model, given).map_err(|error| chain(&error))?;
        self.replica.pristine = false;
        tracing::info!(?tower, from = given, notes = notes.join("; "), "weights of a tower");
        Ok(())
    }

    /// Refuses weights that were trained with the other GELU.
    fn check_gelu(&self, from: &str, trained: Option<bool>) -> Result<(), String> {
        let uses = self.replica.clip.config().quick_gelu;
        let Some(trained) = trained.filter(|trained| *trained != uses) else { return Ok(()) };
        let word = |quick: bool| if quick { "QuickGELU" } else { "exact GELU" };
        let name = &self.job.model.name;
        let remedy = match (trained, name.strip_suffix("-quickgelu")) {
            (true, _) => format!("use {name}-quickgelu"),
            (false, Some(plain)) => format!("use {plain}"),
            (false, None) => "use a configuration without quick_gelu".to_owned(),
        };
        Err(format!(
            "{from} was trained with {} and {name} uses {}; {remedy}",
            word(trained),
            word(uses)
        ))
    }
}

/// Says which field of the manifest a failure belongs to.
fn of(field: &'static str) -> impl Fn(String) -> Error {
    move |what| Error::Checkpoint { what: format!("{field}: {what}") }
}
