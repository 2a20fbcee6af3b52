//! Values in the place of a manifest's own: of a command's flags, or of any client's.

use std::collections::BTreeMap;

use serde_yaml::{Mapping, Value};

use crate::error::{Error, Errors, Problem};
use crate::limits::{MAX_DEPTH, MAX_OVERRIDES, MAX_OVERRIDES_TEXT};
use crate::source::{Path, Position, Source};
use crate::words;

/// Values that [`crate::parse_with`] puts in the place of a text's own.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Vec<Override>);

#[derive(Debug, Clone)]
struct Override {
    /// Dotted, as it was given.
    field: String,
    value: Value,
    /// What of the document is there because of it: the field, or a mapping around it that the text lacks.
    made: Path,
}

impl Overrides {
    /// Reads values, which are YAML, by the dotted paths of their fields: `spec.resources.ranks` to `4`. A value
    /// that is empty takes the field's own away. Of two fields of which one is around the other, the inner
    /// one counts.
    ///
    /// # Errors
    /// Values that are not YAML, and more fields or text than a command line would have. Whether a field
    /// exists and takes its value shows when the manifest is read.
    pub fn read(given: &BTreeMap<String, String>) -> Result<Self, Errors> {
        check_size(given).map_err(|mistake| Errors::new(vec![mistake]))?;
        let (mut all, mut mistakes) = (Vec::new(), Vec::new());
        for (field, text) in given {
            match Override::read(field, text) {
                Ok(one) => all.push(one),
                Err(found) => mistakes.extend(found),
            }
        }
        if mistakes.is_empty() { Ok(Self(all)) } else { Err(Errors::new(mistakes)) }
    }

    /// Puts every value in its place.
    pub(crate) fn apply(&mut self, document: &mut Value) {
        // A text that is no manifest does not become one.
        if !matches!(document, Value::Mapping(_)) {
            return;
        }
        for one in &mut self.0 {
            one.made = put(document, &one.field, one.value.clone());
        }
    }

    /// Returns what messages call the override that a problem is about, if it is about one.
    pub(crate) fn responsible_for(&self, problem: &Problem) -> Option<String> {
        let field = problem.field();
        let is_within = |made: &Path| {
            let rest = field.strip_prefix(&made.to_string());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.0.iter().rev().find(|one| is_within(&one.made)).map(|one| name(&one.field))
    }
}

impl Override {
    fn read(field: &str, text: &str) -> Result<Self, Vec<Error>> {
        let place = |(position, problem)| Error { file: name(field), position, problem };
        let value = if text.trim().is_empty() {
            Value::Null
        } else {
            let faults = |faults: Vec<_>| faults.into_iter().map(place).collect::<Vec<Error>>();
            Source::read(text).map_err(faults)?.1
        };
        Ok(Self { field: field.to_owned(), value, made: Path::of(field) })
    }
}

/// Refuses more than a command line would have, before any of it is read.
fn check_size(given: &BTreeMap<String, String>) -> Result<(), Error> {
    let bytes: usize = given.iter().map(|(field, value)| field.len() + value.len()).sum();
    let levels = given.keys().map(|field| field.split('.').count()).max().unwrap_or(0);
    let what = if given.len() > MAX_OVERRIDES {
        format!("there are {} overrides, at most {MAX_OVERRIDES} may be", given.len())
    } else if bytes > MAX_OVERRIDES_TEXT {
        format!("the overrides have {bytes} bytes, at most {MAX_OVERRIDES_TEXT} may be")
    } else if levels > MAX_DEPTH {
        format!("a field has {levels} keys, at most {MAX_DEPTH} may be")
    } else {
        return Ok(());
    };
    let problem = Problem::TooLarge { what, remedy: "write the values into the manifest" };
    Err(Error { file: "overrides".to_owned(), position: Position::START, problem })
}

/// Returns what messages call an override, where they would name a file.
fn name(field: &str) -> String {
    format!("override {}", words::short(field))
}

/// Puts a value in the place of a field's, and mappings around it where there are none. Returns the outermost
/// field that is there, or is a mapping, because of it.
fn put(document: &mut Value, field: &str, value: Value) -> Path {
    let (mut here, mut place, mut made) = (document, Path::default(), None);
    for key in field.split('.') {
        if !matches!(here, Value::Mapping(_)) {
            made.get_or_insert_with(|| place.clone());
            *here = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(entries) = here else { break };
        place = place.key(key);
        here = entries.entry(Value::from(key)).or_insert(Value::Null);
    }
    *here = value;
    made.unwrap_or(place)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path as FilePath;

    use super::*;
    use crate::ModelCatalogue;
    use crate::spec::TrainJob;

    const MANIFEST: &str = "
apiVersion: ringmaster/v1
kind: TrainJob
metadata: {name: tiny}
spec:
  resources: {ranks: 4, min_ranks: 2}
  model: {name: ViT-B-32}
  data: {train: a.tar}
  loss: {kind: siglip}
  optimizer: {lr: 1e-3}
  schedule: {steps: 40}
  batch: {global: 64}
  checkpoint: {uri: runs}
";

    fn read(given: &[(&str, &str)]) -> Result<TrainJob, String> {
        let given = given.iter().map(|(field, value)| (field.to_string(), value.to_string()));
        let overrides = Overrides::read(&given.collect()).map_err(|errors| errors.to_string())?;
        let (folder, models) = (FilePath::new("/jobs"), ModelCatalogue::builtin());
        crate::parse_with(MANIFEST, "tiny.yaml", folder, overrides, &models)
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn values_take_the_place_of_the_texts_and_of_defaults() {
        let job = read(&[
            ("metadata.name", "other"),
            ("spec.resources.ranks", "8"),
            ("spec.resources.min_ranks", ""),
            ("spec.schedule.steps", "1_000"),
            ("spec.data.aug_cfg.affine.degrees", "15"),
            ("spec.eval.zero_shot", "[{name: one, data: b.tar}]"),
        ])
        .unwrap();
        assert_eq!((job.name.as_str(), job.schedule.total_steps), ("other", 1000));
        assert_eq!((job.resources.ranks, job.resources.min_ranks), (8, 8), "the default again");
        assert_eq!(job.data.aug_cfg.affine.unwrap().degrees, 15.0);
        assert_eq!(job.eval.zero_shot[0].data, ["/jobs/b.tar"]);
    }

    #[test]
    fn the_inner_one_of_two_fields_counts() {
        let job =
            read(&[("spec.resources.ranks", "3"), ("spec.resources", "{ranks: 2, priority: 5}")])
                .unwrap();
        assert_eq!((job.resources.ranks, job.resources.priority), (3, 5));
    }

    #[test]
    fn a_mistake_that_an_override_makes_names_it_and_no_line_of_the_file() {
        for (field, value, said) in [
            (
                "spec.resources.ranks",
                "many",
                "override spec.resources.ranks:1:1: spec.resources.ranks is \"many\"; expected",
            ),
            ("spec.novel.key", "1", "override spec.novel.key:1:1: unknown key \"novel\" in spec"),
            (
                "spec.data.train",
                "[a.tar, ftp://x]",
                "override spec.data.train:1:1: spec.data.train[1] is \"ftp://x\"; expected",
            ),
            ("spec.batch.global", "[1, ", "override spec.batch.global:2:1: not valid YAML"),
            ("kind.of", "1", "override kind.of:1:1: kind is a mapping; expected TrainJob"),
        ] {
            let mistakes = read(&[(field, value)]).unwrap_err();
            assert!(mistakes.starts_with(said), "{mistakes}");
        }
    }

    #[test]
    fn a_mistake_of_the_text_keeps_its_line() {
        let mistakes = read(&[("spec.resources.ranks", "65")]).unwrap_err();
        assert!(mistakes.starts_with("tiny.yaml:12:19: spec.batch.global is 64"), "{mistakes}");
    }

    #[test]
    fn too_much_is_refused_before_it_is_read() {
        let long = "x".repeat(MAX_OVERRIDES_TEXT);
        let refused = read(&[("spec.data.text_key", long.as_str())]).unwrap_err();
        assert!(refused.starts_with("overrides:1:1: the overrides have 4114 bytes"), "{refused}");
        let deep = vec!["a"; 1000].join(".");
        let refused = read(&[(deep.as_str(), "1")]).unwrap_err();
        assert!(refused.contains("a field has 1000 keys, at most 64 may be"), "{refused}");
        let fields: Vec<String> = (0..33).map(|n| format!("spec.novelty_{n}")).collect();
        let many: Vec<(&str, &str)> = fields.iter().map(|field| (field.as_str(), "1")).collect();
        assert!(read(&many).unwrap_err().contains("there are 33 overrides"));
    }
}
