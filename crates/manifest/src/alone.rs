//! `data` without a job: what commands that only look at samples are told.

use std::path::Path;

use serde_json::{Value, json};

use crate::catalogue::ModelCatalogue;
use crate::error::Errors;
use crate::parse::parse;
use crate::spec;

/// What a command line says of samples, in the words of a manifest's `data`. What is none has the manifest's
/// default.
#[derive(Debug, Clone, Copy, Default)]
pub struct DataWords<'a> {
    /// Shards, as `data.train`: paths and URLs, with braces and `::`.
    pub train: &'a [String],
    /// As `data.image_key`.
    pub image_key: Option<&'a str>,
    /// As `data.text_key`.
    pub text_key: Option<&'a str>,
    /// As `data.json_text_key`.
    pub json_text_key: Option<&'a str>,
    /// As `data.dataset_type`.
    pub dataset_type: Option<&'a str>,
    /// As `data.csv_separator`.
    pub csv_separator: Option<&'a str>,
    /// As `data.csv_img_key` and `data.parquet_img_key`.
    pub img_key: Option<&'a str>,
    /// As `data.csv_caption_key` and `data.parquet_caption_key`.
    pub caption_key: Option<&'a str>,
}

/// Returns the `data` of a manifest that says nothing else: one source, and every default.
///
/// Relative paths start at `base_dir`, which is absolute.
///
/// # Errors
/// Every mistake, at its field `spec.data.…`.
pub fn data(words: DataWords<'_>, base_dir: &Path) -> Result<spec::Data, Errors> {
    let mut data = json!({"train": words.train});
    for (key, word) in [
        ("image_key", words.image_key),
        ("text_key", words.text_key),
        ("json_text_key", words.json_text_key),
        ("dataset_type", words.dataset_type),
        ("csv_separator", words.csv_separator),
        ("csv_img_key", words.img_key),
        ("parquet_img_key", words.img_key),
        ("csv_caption_key", words.caption_key),
        ("parquet_caption_key", words.caption_key),
    ] {
        if let Some(word) = word {
            data[key] = Value::from(word);
        }
    }
    // JSON is YAML. What a manifest has to have besides is read and not used.
    let manifest = json!({
        "apiVersion": "ringmaster/v1",
        "kind": "TrainJob",
        "metadata": {"name": "data"},
        "spec": {
            "model": {"name": "ViT-B-32"},
            "data": data,
            "loss": {"kind": "siglip"},
            "optimizer": {"lr": 1e-3},
            "schedule": {"steps": 1},
            "batch": {"global": 1},
            "checkpoint": {"uri": "/"},
        },
    });
    let job = parse(&manifest.to_string(), "data", base_dir, &ModelCatalogue::builtin())?;
    Ok(job.data)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shards_alone_have_the_defaults_of_a_manifest() {
        let train = ["a/{0..2}.tar".to_owned(), "s3://b/c.tar".to_owned()];
        let words = DataWords { train: &train, ..DataWords::default() };
        let data = data(words, Path::new("/base")).unwrap();
        let shards = ["/base/a/0.tar", "/base/a/1.tar", "/base/a/2.tar", "s3://b/c.tar"];
        assert_eq!(data.sources[0].data, shards);
        assert_eq!(data.image_key, ["png", "jpg", "jpeg", "webp"]);
        assert_eq!((data.text_key.as_str(), data.json_text_key), ("txt", None));
    }

    #[test]
    fn what_is_said_takes_the_place_of_defaults_and_mistakes_name_the_field() {
        let train = ["a\"b: #.tar".to_owned()];
        let words = DataWords {
            train: &train,
            image_key: Some(".gif;png"),
            text_key: Some("cls"),
            json_text_key: Some("captions"),
            img_key: Some("picture"),
            ..DataWords::default()
        };
        let read = data(words, Path::new("/base")).unwrap();
        assert_eq!(read.sources[0].data, ["/base/a\"b: #.tar"]);
        assert_eq!(
            (read.image_key, read.text_key),
            (vec!["gif".into(), "png".into()], "cls".into())
        );
        assert_eq!(read.json_text_key.as_deref(), Some("captions"));
        assert_eq!(
            (read.csv_img_key.as_str(), read.parquet_img_key),
            ("picture", vec!["picture".into()])
        );
        let words = DataWords { train: &["~/a.tar".to_owned()], ..DataWords::default() };
        let error = data(words, Path::new("/base")).unwrap_err().to_string();
        assert!(error.contains("spec.data.train") && error.contains("without ~"), "{error}");
    }
}
