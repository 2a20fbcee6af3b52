//! Manifests as clients hand them in: read, or refused with every mistake and its place.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use ringmaster_manifest::error::Error as Mistake;
use ringmaster_manifest::spec::TrainJob;
use ringmaster_manifest::{Errors, MAX_NAMES, MAX_TEXT, ModelCatalogue, Overrides, parse_with};
use ringmaster_proto::status::with_details;
use ringmaster_proto::{limits, v1};
use ringmaster_words::chain;
use tonic::{Code, Status};

use super::to_status;
use crate::fleet::{self, Submission};

/// Full name of what the details of a refusal hold.
const MISTAKES: &str = "ringmaster.v1.ManifestMistakes";

/// Longest text of a refusal, as [`weight`] counts. It travels in the trailers of a call, of which clients take
/// 8 KiB: in the status's message, again in its details, and there once more, mistake by mistake.
const MAX_WEIGHT: usize = 1500;

/// Characters of a file's name that messages repeat.
const MAX_NAME: usize = 120;

/// What stands for a text that is left out.
const LEFT_OUT: char = '…';

/// A job goes to agents in one message.
const _: () = assert!(MAX_NAMES + MAX_TEXT < limits::MAX_MESSAGE_BYTES);

/// Reads the manifest of a request: what it means with its overrides, the models that come with it and those
/// of `models`.
///
/// # Errors
/// `INVALID_ARGUMENT`; for mistakes in the manifest with a [`v1::ManifestMistakes`] in its details.
pub(super) fn read(
    request: v1::SubmitRequest,
    models: &ModelCatalogue,
) -> Result<Submission, Status> {
    check_folder(&request.base_dir)?;
    let job = if request.models.is_empty() {
        parse(&request, models)?
    } else {
        parse(&request, &with(models, &request.models)?)?
    };
    Ok(Submission::new(job, request))
}

fn parse(request: &v1::SubmitRequest, models: &ModelCatalogue) -> Result<TrainJob, Status> {
    let refuse = |mistakes: Errors| refused(&mistakes);
    let given: BTreeMap<String, String> = request.overrides.clone().into_iter().collect();
    let overrides = Overrides::read(&given).map_err(refuse)?;
    let (text, folder) = (&request.manifest_yaml, Path::new(&request.base_dir));
    parse_with(text, &shown_name(&request.file_name), folder, overrides, models).map_err(refuse)
}

/// Refuses a folder whose place depends on who looks.
fn check_folder(folder: &str) -> Result<(), Status> {
    if folder.is_empty() || Path::new(folder).is_absolute() {
        return Ok(());
    }
    Err(to_status(fleet::Error::Invalid {
        field: "base_dir",
        value: format!("{:?}", shortened(folder, MAX_WEIGHT)),
        constraint: "expected an absolute path, or nothing where the manifest has no relative ones"
            .to_owned(),
    }))
}

/// Adds the models of a request to those that are known.
fn with(models: &ModelCatalogue, more: &HashMap<String, String>) -> Result<ModelCatalogue, Status> {
    let mut models = models.clone();
    // In an order, so that the same request is always refused for the same model.
    for (name, text) in more.iter().collect::<BTreeMap<_, _>>() {
        models.add(name, text).map_err(|error| {
            let what = format!("the configuration of model {name:?} cannot be used");
            Status::invalid_argument(shortened(&format!("{what}: {}", chain(&error)), MAX_WEIGHT))
        })?;
    }
    Ok(models)
}

/// Returns what messages call the manifest.
fn shown_name(file_name: &str) -> String {
    let length = file_name.chars().count();
    if length == 0 {
        "manifest".to_owned()
    } else if length <= MAX_NAME {
        file_name.to_owned()
    } else {
        // Its end tells files apart.
        let end = file_name.chars().skip(length - MAX_NAME + 1);
        std::iter::once(LEFT_OUT).chain(end).collect()
    }
}

/// Returns the status that tells as many mistakes as a client takes, and counts the others.
fn refused(mistakes: &Errors) -> Status {
    let mut left = MAX_WEIGHT;
    let fitting = mistakes.iter().take_while(|mistake| {
        let weight = weight(&mistake.to_string());
        let fits = weight <= left;
        left = left.saturating_sub(weight);
        fits
    });
    let told = mistakes.up_to(fitting.count());
    let details = v1::ManifestMistakes {
        mistakes: told.iter().map(to_proto).collect(),
        left_out: u32::try_from(told.left_out()).unwrap_or(u32::MAX),
    };
    // One mistake alone may be longer than that.
    let text = shortened(&told.to_string(), MAX_WEIGHT + 100);
    with_details(Code::InvalidArgument, text, MISTAKES, &details)
}

fn to_proto(mistake: &Mistake) -> v1::Mistake {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    v1::Mistake {
        file: mistake.file.clone(),
        line: number(mistake.position.line),
        column: number(mistake.position.column),
        field: shortened(&mistake.problem.field(), MAX_WEIGHT / 4),
        message: shortened(&mistake.problem.to_string(), MAX_WEIGHT),
    }
}

/// Returns as much of a text as weighs at most so much.
fn shortened(text: &str, most: usize) -> String {
    let mut left = most;
    let fits = |character: &char| {
        let weight = weight(character.encode_utf8(&mut [0; 4]));
        let fits = weight <= left;
        left = left.saturating_sub(weight);
        fits
    };
    let mut start: String = text.chars().take_while(fits).collect();
    if start.len() < text.len() {
        start.push(LEFT_OUT);
    }
    start
}

/// Returns the bytes that gRPC makes of a text: most punctuation becomes three.
fn weight(text: &str) -> usize {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/,;'()[]".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { 1 } else { 3 }).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::status::details;

    use super::*;

    const MANIFEST: &str = "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {name: tiny}\nspec:\n  \
         model: {name: ViT-B-32}\n  data: {train: a.tar}\n  loss: {kind: siglip}\n  \
         optimizer: {lr: 1.0e-3}\n  schedule: {steps: 40}\n  batch: {global: 64}\n  \
         checkpoint: {uri: /data/checkpoints}\n";

    fn request(manifest: &str) -> v1::SubmitRequest {
        v1::SubmitRequest {
            file_name: "tiny.yaml".to_owned(),
            manifest_yaml: manifest.to_owned(),
            base_dir: "/jobs".to_owned(),
            ..Default::default()
        }
    }

    fn job(request: &v1::SubmitRequest) -> Result<TrainJob, Status> {
        let models = ModelCatalogue::builtin();
        // As the service does, but for what it returns.
        read(request.clone(), &models)?;
        parse(request, &with(&models, &request.models)?)
    }

    fn told(status: &Status) -> v1::ManifestMistakes {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        details(status, MISTAKES).unwrap()
    }

    #[test]
    fn the_message_and_the_details_tell_line_and_column() {
        let wrong = MANIFEST.replace("{lr: 1.0e-3}", "{lr: 1.0e-3, betta1: 0.9}");
        let status = job(&request(&wrong)).unwrap_err();
        let text =
            "tiny.yaml:8:27: unknown key \"betta1\" in spec.optimizer; did you mean \"beta1\"?";
        assert!(status.message().starts_with(text), "{status}");
        let mistakes = told(&status);
        assert_eq!((mistakes.mistakes.len(), mistakes.left_out), (1, 0));
        let mistake = &mistakes.mistakes[0];
        assert_eq!((mistake.file.as_str(), mistake.line, mistake.column), ("tiny.yaml", 8, 27));
        assert_eq!(mistake.field, "spec.optimizer.betta1");
        assert!(mistake.message.starts_with("unknown key"), "{mistake:?}");
    }

    #[test]
    fn many_mistakes_fit_what_a_client_takes_and_the_others_are_counted() {
        let more: String = (0..90).map(|n| format!("  novelty_{n}: {{}}\n")).collect();
        let status = job(&request(&format!("{MANIFEST}{more}"))).unwrap_err();
        let mistakes = told(&status);
        let count = u32::try_from(mistakes.mistakes.len()).unwrap();
        assert!(count >= 2, "{status}");
        assert_eq!(count + mistakes.left_out, 90);
        let end = format!("and {} more mistakes", mistakes.left_out);
        assert!(status.message().ends_with(&end), "{status}");
        // Base 64 makes four bytes of three.
        let trailers = weight(status.message()) + status.details().len() * 4 / 3;
        assert!(trailers < 8000, "{trailers}");
    }

    #[test]
    fn one_long_mistake_is_told_with_its_place() {
        let folder = "x".repeat(5000);
        let wrong = MANIFEST.replace("a.tar", &format!("ftp://{folder}"));
        let mut request = request(&wrong);
        request.file_name = format!("/{folder}/tiny.yaml");
        let status = job(&request).unwrap_err();
        let mistakes = told(&status).mistakes;
        let file = &mistakes[0].file;
        assert!(file.starts_with('…') && file.ends_with("x/tiny.yaml"), "{file}");
        assert_eq!(file.chars().count(), MAX_NAME);
        assert!(status.message().contains("tiny.yaml:6:17: spec.data.train"), "{status}");
        assert!(status.message().len() < 2 * MAX_WEIGHT, "{status}");
    }

    #[test]
    fn relative_paths_start_at_the_folder_and_without_one_are_mistakes() {
        assert_eq!(job(&request(MANIFEST)).unwrap().data.sources[0].data, ["/jobs/a.tar"]);
        let nowhere = v1::SubmitRequest { base_dir: String::new(), ..request(MANIFEST) };
        let status = job(&nowhere).unwrap_err();
        assert!(
            status.message().contains("6:17: spec.data.train is \"a.tar\"; expected an absolute")
        );
        let somewhere = v1::SubmitRequest { base_dir: "jobs".to_owned(), ..request(MANIFEST) };
        let status = job(&somewhere).unwrap_err();
        assert!(status.message().starts_with("base_dir is \"jobs\"; expected"), "{status}");
        let absolute = MANIFEST.replace("a.tar", "/data/a.tar");
        let nowhere = v1::SubmitRequest { base_dir: String::new(), ..request(&absolute) };
        assert_eq!(job(&nowhere).unwrap().data.sources[0].data, ["/data/a.tar"]);
    }

    #[test]
    fn overrides_take_the_place_of_values_and_are_named_where_they_are_wrong() {
        let mut request = request(MANIFEST);
        request.overrides.insert("spec.resources.ranks".to_owned(), "4".to_owned());
        assert_eq!(job(&request).unwrap().resources.ranks, 4);
        request.overrides.insert("spec.resources.ranks".to_owned(), "0".to_owned());
        let mistakes = told(&job(&request).unwrap_err()).mistakes;
        assert_eq!(mistakes[0].file, "override spec.resources.ranks");
        assert_eq!(mistakes[0].field, "spec.resources.ranks");
    }

    #[test]
    fn models_that_come_with_a_request_are_known_to_it() {
        let manifest = MANIFEST.replace("ViT-B-32", "mine");
        let mut request = request(&manifest);
        let unknown = job(&request).unwrap_err();
        assert!(unknown.message().contains("5:17: spec.model.name is \"mine\""), "{unknown}");
        let model = |width: u32| {
            format!(r#"{{"embed_dim": 8, "vision_cfg": {{"width": {width}}}, "text_cfg": {{}}}}"#)
        };
        request.models.insert("mine".to_owned(), model(64));
        assert_eq!(job(&request).unwrap().model.config.embed_dim, 8);
        request.models.insert("mine".to_owned(), model(65));
        let status = job(&request).unwrap_err();
        let said = "the configuration of model \"mine\" cannot be used: vision_cfg.width is 65";
        assert!(status.message().starts_with(said), "{status}");
    }
}
