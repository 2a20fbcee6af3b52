//! Weights that a run starts from at step 0: of a whole model, and of towers by themselves; and training
//! checkpoints of OpenCLIP's.

use std::path::Path;

use ringmaster_checkpoint as checkpoint;
use ringmaster_manifest::model_config::PreprocessCfg;
use ringmaster_weights::Weights;

use crate::error::Error;
use crate::factory::load::{Misfit, MissingBias};
use crate::factory::source::{self, Pretrained, Source};
use crate::factory::{self, tower};
use crate::model::Tower;
use crate::rank::Rank;
use crate::replica::openclip;

impl Rank {
    /// Loads what the manifest names; nothing else of where weights come from is taken.
    pub(crate) fn load_pretrained(&mut self) -> Result<(), Error> {
        let model = self.job.model.clone();
        if let Some(given) = &model.pretrained {
            self.load_model(&model.name, given)?;
        }
        let (image, text) = (model.pretrained_image.as_deref(), model.pretrained_text.as_deref());
        let whole = model.pretrained.is_some();
        for (tower, given) in tower::wanted(&model.config, image, text, whole) {
            let field = if tower == Tower::Image { IMAGE } else { TEXT };
            self.load_tower(tower, &model.name, &given).map_err(of(field))?;
        }
        Ok(())
    }

    /// Goes on from a training checkpoint of OpenCLIP's, with its moments and its step.
    pub(crate) fn load_training(&mut self, place: &str) -> Result<(), Error> {
        let file = self.training_file(place).map_err(of(RESUME))?;
        let global_batch = u64::from(self.job.batch.global);
        let resumed = self.replica.load_training(&file, global_batch).map_err(of(RESUME))?;
        tracing::info!(
            place,
            step = resumed.step,
            epoch = resumed.epoch,
            samples = self.replica.resumed_samples,
            notes = resumed.notes.join("; "),
            "going on from OpenCLIP's training checkpoint; a step counts as one of this job's batches, \
             and the order of samples is this job's own"
        );
        let departures = openclip::departures(&resumed.groups, &self.job.optimizer);
        if !departures.is_empty() {
            tracing::warn!(departures = departures.join("; "), "the optimizer is another one now");
        }
        Ok(())
    }

    fn training_file(&self, place: &str) -> Result<Weights, factory::Error> {
        match source::find(&self.job.model.name, place)?.source {
            Source::File(path) => Ok(Weights::open(&path)?),
            Source::Checkpoint(_) => {
                Err(factory::lookup::Error::NoCheckpoint { url: place.to_owned() }.into())
            }
        }
    }

    fn load_model(&mut self, model: &str, given: &str) -> Result<(), Error> {
        let Pretrained { source, quick_gelu, preprocess } =
            source::find(model, given).map_err(|error| of(MODEL)(error.into()))?;
        if let Some(trained) = preprocess {
            self.compare_preprocess(&trained);
        }
        match source {
            Source::File(path) => self.load_file(&path, quick_gelu).map_err(of(MODEL)),
            Source::Checkpoint(loaded) => {
                self.check_gelu(given.as_ref(), quick_gelu).map_err(of(MODEL))?;
                self.load_checkpoint(given, &loaded)
            }
        }
    }

    /// Weights of another run.
    fn load_checkpoint(&mut self, url: &str, loaded: &checkpoint::Loaded) -> Result<(), Error> {
        let trained = &loaded.state.manifest.model.config;
        let misfit = |misfit| {
            let hint = Some("use a checkpoint of the same model".to_owned());
            let misfit = Misfit { hint, ..misfit };
            Error::Checkpoint { what: format!("{MODEL}: {url}: {misfit}") }
        };
        let notes = self.replica.load_weights(loaded).map_err(misfit)?;
        tracing::info!(
            url,
            step = loaded.state.step,
            notes = notes.join("; "),
            differs = factory::differs(trained, self.replica.clip.config()),
            "weights of another run"
        );
        Ok(())
    }

    /// Weights in a file of any format, as OpenCLIP's `--pretrained FILE`.
    fn load_file(&mut self, path: &Path, quick_gelu: Option<bool>) -> Result<(), factory::Error> {
        let weights = Weights::open(path)?;
        self.check_gelu(path, quick_gelu.or(factory::gelu_of(&weights)))?;
        let notes = factory::from_file(&self.replica.clip, &weights, MissingBias::Kept)?;
        self.replica.pristine = false;
        tracing::info!(path = %path.display(), notes = notes.join("; "), "weights of a file");
        Ok(())
    }

    fn load_tower(&mut self, tower: Tower, model: &str, given: &str) -> Result<(), factory::Error> {
        let notes = tower::load(&self.replica.clip, tower, model, given, false)?;
        self.replica.pristine = false;
        tracing::info!(?tower, from = given, notes = notes.join("; "), "weights of a tower");
        Ok(())
    }

    fn check_gelu(&self, from: &Path, trained: Option<bool>) -> Result<(), factory::Error> {
        let config = self.replica.clip.config();
        factory::check_gelu(&self.job.model.name, config, from, trained, false)
    }

    /// Says where images are prepared otherwise than when the weights were trained.
    fn compare_preprocess(&self, trained: &PreprocessCfg) {
        let own = &self.job.model.preprocess;
        let trained = PreprocessCfg { size: own.size, ..trained.clone() };
        if *own != trained {
            tracing::warn!(
                trained = ?trained,
                now = ?own,
                "images are prepared otherwise than when these weights were trained; set \
                 spec.model.image_mean, image_std, image_interpolation and image_resize_mode"
            );
        }
    }
}

const RESUME: &str = "--resume";
const MODEL: &str = "spec.model.pretrained";
const IMAGE: &str = "spec.model.pretrained_image";
const TEXT: &str = "spec.model.pretrained_text";

/// Adds to an error the field of the manifest, or the flag, that names the weights.
fn of(field: &str) -> impl Fn(factory::Error) -> Error {
    move |source| Error::Weights { field: field.to_owned(), source }
}
