//! Model configurations by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use crate::model_config::{self, ModelConfig, PreprocessCfg};
use crate::nearest;

mod builtin {
    include!(concat!(env!("OUT_DIR"), "/builtin_models.rs"));
}

/// Environment variable that names a folder of further configurations.
pub const FOLDER_VARIABLE: &str = "RINGMASTER_MODELS";

/// The models that a manifest may name.
#[derive(Debug, Clone, Default)]
pub struct ModelCatalogue {
    models: BTreeMap<String, ModelConfig>,
    /// Of models whose file says how images are prepared for them.
    preprocess: BTreeMap<String, PreprocessCfg>,
    /// The files of models that were added.
    texts: BTreeMap<String, String>,
}

/// A model configuration that cannot be used.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder or file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file is no usable model configuration in `OpenCLIP`'s format.
    #[error("{} is no usable model configuration", path.display())]
    Config {
        path: PathBuf,
        /// Which field, its value, and what is allowed.
        #[source]
        source: model_config::Error,
    },
}

impl ModelCatalogue {
    /// Returns the configurations this build embeds from `configs/models`.
    pub fn builtin() -> Self {
        let models = builtin::BUILTIN
            .iter()
            .map(|(name, text)| {
                let config = ModelConfig::from_json(text)
                    .unwrap_or_else(|error| panic!("embedded model {name} is invalid: {error}"));
                ((*name).to_owned(), config)
            })
            .collect();
        Self { models, ..Self::default() }
    }

    /// Returns the embedded configurations and those of the folder that `RINGMASTER_MODELS` names.
    ///
    /// # Errors
    /// As [`Self::with_folder`].
    pub fn from_env() -> Result<Self, Error> {
        match env::var_os(FOLDER_VARIABLE) {
            Some(folder) if !folder.is_empty() => Self::builtin().with_folder(Path::new(&folder)),
            _ => Ok(Self::builtin()),
        }
    }

    /// Adds every `*.json` of `folder` under its file name without the ending; a name that is
    /// already there is replaced.
    ///
    /// # Errors
    /// A folder or file that cannot be read, or a file that is no usable configuration.
    pub fn with_folder(mut self, folder: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: folder.to_owned(), source };
        for entry in fs::read_dir(folder).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            let text = fs::read_to_string(&path)
                .map_err(|source| Error::Read { path: path.clone(), source })?;
            self.add(name, &text).map_err(|source| Error::Config { path: path.clone(), source })?;
        }
        Ok(self)
    }

    /// Adds a model by its configuration in `OpenCLIP`'s JSON. One that is there under this name is replaced.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json`]; then nothing is added.
    pub fn add(&mut self, name: &str, text: &str) -> Result<(), model_config::Error> {
        let config = ModelConfig::from_json(text)?;
        let preprocess = ModelConfig::preprocess_from_json(text)?;
        self.models.insert(name.to_owned(), config);
        self.texts.insert(name.to_owned(), text.to_owned());
        match preprocess {
            Some(preprocess) => self.preprocess.insert(name.to_owned(), preprocess),
            None => self.preprocess.remove(name),
        };
        Ok(())
    }

    /// Returns the JSON that a model was added by; none for a model of this build.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str)
    }

    /// Returns the configuration of this name.
    pub fn get(&self, name: &str) -> Option<&ModelConfig> {
        self.models.get(name)
    }

    /// Returns how images are prepared for the model of this name: as its file says, else as
    /// [`PreprocessCfg::of_model`]; the size is the model's.
    pub fn preprocess(&self, name: &str) -> Option<PreprocessCfg> {
        let config = self.get(name)?;
        let of_model = PreprocessCfg::of_model(name, config);
        Some(match self.preprocess.get(name) {
            Some(given) => PreprocessCfg { size: of_model.size, ..given.clone() },
            None => of_model,
        })
    }

    /// Returns all names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }

    /// Returns all models, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ModelConfig)> {
        self.models.iter().map(|(name, config)| (name.as_str(), config))
    }

    /// Returns up to three names that look like `name`.
    pub fn nearest(&self, name: &str) -> Vec<&str> {
        nearest::names(name, self.names(), 3)
    }
}

impl FromIterator<(String, ModelConfig)> for ModelCatalogue {
    fn from_iter<I: IntoIterator<Item = (String, ModelConfig)>>(models: I) -> Self {
        Self { models: models.into_iter().collect(), ..Self::default() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_model_is_consistent() {
        let catalogue = ModelCatalogue::builtin();
        for name in ["ViT-B-16", "ViT-B-32", "ViT-L-14"] {
            assert!(catalogue.get(name).is_some(), "{name}");
        }
        for (name, config) in &catalogue.models {
            assert_eq!(config.check(), Ok(()), "{name}");
        }
        assert_eq!(catalogue.get("ViT-L-14").unwrap().text_cfg.heads, 12);
        assert_eq!(catalogue.nearest("vit-b/16")[0], "ViT-B-16");
    }

    #[test]
    fn a_model_that_is_added_takes_the_place_of_one_with_its_preprocessing() {
        let mut catalogue = ModelCatalogue::builtin();
        assert_eq!(catalogue.text("ViT-B-32"), None);
        let model = r#"{"embed_dim": 8, "vision_cfg": {"width": 64}, "text_cfg": {}}"#;
        let grey =
            format!(r#"{{"model_cfg": {model}, "preprocess_cfg": {{"mean": [0.1, 0.1, 0.1]}}}}"#);
        catalogue.add("ViT-B-32", &grey).unwrap();
        assert_eq!(catalogue.get("ViT-B-32").unwrap().embed_dim, 8);
        assert_eq!(catalogue.preprocess("ViT-B-32").unwrap().mean, [0.1; 3]);
        catalogue.add("ViT-B-32", model).unwrap();
        assert_ne!(catalogue.preprocess("ViT-B-32").unwrap().mean, [0.1; 3]);
        assert!(catalogue.add("ViT-B-32", "{}").is_err());
        assert_eq!(catalogue.get("ViT-B-32").unwrap().embed_dim, 8);
    }

    #[test]
    fn a_folder_adds_models_and_a_bad_file_names_itself() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("mine.json", r#"{"embed_dim": 8, "vision_cfg": {"width": 64}, "text_cfg": {}}"#);
        let catalogue = ModelCatalogue::default().with_folder(folder.path()).unwrap();
        assert_eq!(catalogue.get("mine").unwrap().embed_dim, 8);
        assert!(catalogue.text("mine").unwrap().contains("\"embed_dim\": 8"));

        write("odd.json", r#"{"embed_dim": 8, "vision_cfg": {"width": 65}, "text_cfg": {}}"#);
        let error = ModelCatalogue::default().with_folder(folder.path()).unwrap_err();
        assert!(error.to_string().contains("odd.json"), "{error}");
        let reason = std::error::Error::source(&error).unwrap().to_string();
        let expected = "vision_cfg.width is 65; expected a multiple of vision_cfg.head_width, 64";
        assert_eq!(reason, expected);
    }
}
