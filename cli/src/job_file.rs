//! From a manifest file to a request the coordinator takes.
//!
//! The coordinator reads the manifest itself. It is read here, too, so that people hear of mistakes before
//! anything is sent or started, and because only this machine can look at its files and its folder of models.

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use ringmaster_manifest::ModelCatalogue;
use ringmaster_manifest::spec::{DatasetType, Source, TrainJob};
use ringmaster_proto::v1::SubmitRequest;
use ringmaster_store as store;

use super::error::{Error, MissingFile};
use super::output;
use ringmaster_words::thousands;

/// A manifest that was read and found valid.
#[derive(Debug)]
pub(crate) struct JobFile {
    path: PathBuf,
    yaml: String,
    /// Where relative paths in it start.
    base_dir: PathBuf,
    /// Values in the place of its own, by field.
    overrides: HashMap<String, String>,
    /// The model's configuration as this machine knows it, in OpenCLIP's JSON: the coordinator may know another
    /// one by this name.
    model: String,
    /// What it means.
    pub(crate) job: TrainJob,
}

impl JobFile {
    /// Reads and validates the manifest at `path`. Relative paths in it start at its folder.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let read_error = |source| Error::ReadManifest { path: path.to_owned(), source };
        let refused = |mistakes: ringmaster_manifest::Errors| Error::Manifest {
            path: path.to_owned(),
            mistakes: mistakes.to_string(),
        };
        let shown_name = path.display().to_string();
        let bytes = read_start(path).map_err(read_error)?;
        let yaml = ringmaster_manifest::decode(&bytes, &shown_name).map_err(refused)?;
        let absolute = std::path::absolute(path).map_err(read_error)?;
        let base_dir = absolute.parent().unwrap_or(Path::new("/"));
        let models = ModelCatalogue::from_env().map_err(Error::Models)?;
        let job =
            ringmaster_manifest::parse(&yaml, &shown_name, base_dir, &models).map_err(refused)?;
        let builtin =
            || serde_json::to_string(&job.model.config).expect("a model's configuration is JSON");
        let model = models.text(&job.model.name).map_or_else(builtin, str::to_owned);
        let (path, base_dir) = (path.to_owned(), base_dir.to_owned());
        Ok(Self { path, yaml, base_dir, overrides: HashMap::new(), model, job })
    }

    /// Trains with `ranks` ranks whatever the manifest says.
    ///
    /// # Errors
    /// When the batch cannot be divided among so many.
    pub(crate) fn set_ranks(&mut self, ranks: u32) -> Result<(), Error> {
        let refused = |constraint: String, remedy: &str| Error::Flag {
            flag: "--ranks",
            value: ranks.to_string(),
            constraint,
            remedy: remedy.to_owned(),
        };
        let batch = self.job.batch.global;
        if ranks > batch {
            let constraint = format!("spec.batch.global is {batch} and every rank needs a sample");
            return Err(refused(constraint, "use fewer ranks or a larger batch"));
        }
        if let Some(group) = self.job.loss.ring_group.filter(|group| !ranks.is_multiple_of(*group))
        {
            let constraint = format!("spec.loss.ring.group is {group} and must divide the ranks");
            return Err(refused(constraint, "use a multiple, or ring.group: auto"));
        }
        let resources = &mut self.job.resources;
        resources.ranks = ranks;
        resources.min_ranks = resources.min_ranks.min(ranks);
        for (key, value) in [("ranks", ranks), ("min_ranks", resources.min_ranks)] {
            self.overrides.insert(format!("spec.resources.{key}"), value.to_string());
        }
        Ok(())
    }

    /// Lets the job go on with other data than the run it resumes from.
    pub(crate) fn accept_new_data(&mut self) {
        self.job.data.accept_new_data = true;
        self.overrides.insert("spec.data.accept_new_data".to_owned(), "true".to_owned());
    }

    /// Tells what the job may do, and will do badly.
    pub(crate) fn advise(&self) {
        for advice in ringmaster_manifest::advice(&self.job) {
            output::error_line(&format!("warning: {}: {advice}", self.path.display()));
        }
    }

    /// Checks that every local data file the manifest names is there.
    pub(crate) fn check_data(&self) -> Result<(), Error> {
        let mut missing = Vec::new();
        for (number, source) in self.job.data.sources.iter().enumerate() {
            let form = source.form(self.job.data.dataset_type);
            missing.extend(missing_files(&self.job.data.field(number), &source.data, form));
        }
        for (index, set) in self.job.eval.zero_shot.iter().enumerate() {
            let field = format!("spec.eval.zero_shot[{index}].data");
            let form = Source::train(set.data.clone()).form(DatasetType::Auto);
            missing.extend(missing_files(&field, &set.data, form));
        }
        if missing.is_empty() { Ok(()) } else { Err(Error::MissingData { missing }) }
    }

    /// Checks that this machine's settings lead to every store the job uses; none is asked yet.
    ///
    /// # Errors
    /// The first URL whose store cannot be opened, and why.
    pub(crate) fn check_stores(&self) -> Result<(), Error> {
        let train = self.job.data.shards();
        let sets = self.job.eval.zero_shot.iter().enumerate().flat_map(|(index, set)| {
            let field = format!("spec.eval.zero_shot[{index}].data");
            set.data.iter().map(move |url| (field.clone(), url))
        });
        let uri = ("spec.checkpoint.uri".to_owned(), &self.job.checkpoint.uri);
        let mut asked = HashSet::new();
        for (field, url) in std::iter::once(uri).chain(train).chain(sets) {
            if local_path(url).is_some() || !asked.insert(origin(url)) {
                continue;
            }
            store::open(url).map_err(|store::Unusable { url, reason, .. }| Error::Store {
                field,
                url,
                reason,
            })?;
        }
        Ok(())
    }

    /// Returns the request that submits this job once, however often it is sent.
    pub(crate) fn submit_request(&self, resume_from: String) -> SubmitRequest {
        SubmitRequest {
            file_name: self.path.display().to_string(),
            request_id: hex::encode(rand::random::<[u8; 16]>()),
            resume_from,
            manifest_yaml: self.yaml.clone(),
            // A path that is no UTF-8 has no relative ones below it that a manifest could name.
            base_dir: self.base_dir.to_str().unwrap_or_default().to_owned(),
            overrides: self.overrides.clone(),
            models: [(self.job.model.name.clone(), self.model.clone())].into(),
        }
    }

    /// Returns what the job is in one line.
    pub(crate) fn headline(&self) -> String {
        headline(&self.job)
    }
}

/// Reads a file as far as it can be a manifest, and a byte more; whatever its name, it may be a data set.
fn read_start(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let longest = ringmaster_manifest::MAX_TEXT as u64 + 1;
    std::fs::File::open(path)?.take(longest).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns what a job is in one line: model, loss, ranks, batch, length.
pub(crate) fn headline(job: &TrainJob) -> String {
    let loss = match job.loss.kind {
        ringmaster_manifest::spec::LossKind::Siglip => "siglip",
        ringmaster_manifest::spec::LossKind::Infonce => "infonce",
    };
    let (ranks, batch) = (job.resources.ranks, u64::from(job.batch.global));
    let steps = job.schedule.total_steps;
    format!(
        "{} · {loss} · {ranks} {} · batch {} · {} steps · {} samples",
        job.model.name,
        if ranks == 1 { "rank" } else { "ranks" },
        thousands(batch),
        thousands(steps),
        thousands(job.total_samples())
    )
}

/// Returns scheme and host of a URL: what lies there is in one store.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |scheme| scheme + 3);
    url[host..].find('/').map_or(url, |end| &url[..host + end])
}

/// Returns the local path a data URL means, or none for a remote store.
fn local_path(url: &str) -> Option<PathBuf> {
    let path = match url.split_once("://") {
        Some(("file", rest)) => rest.strip_prefix("localhost").unwrap_or(rest),
        Some(_) => return None,
        None => url,
    };
    Some(PathBuf::from(percent_decoded(path, url.contains("://"))))
}

fn percent_decoded(path: &str, is_url: bool) -> String {
    if !is_url || !path.contains('%') {
        return path.to_owned();
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail
            .get(..2)
            .filter(|_| byte == b'%')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn missing_files(field: &str, urls: &[String], form: DatasetType) -> Vec<MissingFile> {
    urls.iter()
        .filter(|_| form != DatasetType::Synthetic)
        .filter_map(|url| local_path(url))
        .filter_map(|path| {
            let found = match form {
                DatasetType::Folder if path.is_dir() => return None,
                DatasetType::Folder => {
                    not_a_file(&path).unwrap_or_else(|| "is no folder".to_owned())
                }
                _ => not_a_file(&path)?,
            };
            Some(MissingFile { field: field.to_owned(), path, found })
        })
        .collect()
}

/// Returns what is at a path where a file was expected; none if a file is.
pub(crate) fn not_a_file(path: &Path) -> Option<String> {
    let found = match std::fs::metadata(path) {
        Ok(about) if about.is_file() => return None,
        Ok(about) if about.is_dir() => "is a folder".to_owned(),
        Ok(_) => "is no regular file".to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => match std::fs::read_link(path) {
            Ok(target) => format!("is a link to {}, which does not exist", target.display()),
            Err(_) => "does not exist".to_owned(),
        },
        Err(error) => format!("cannot be looked at ({error})"),
    };
    Some(found)
}

/// Returns the local folder a checkpoint URI means, or none for a remote store.
pub(crate) fn local_folder(uri: &str) -> Option<PathBuf> {
    local_path(uri)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_local_files_are_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("a b.tar");
        std::fs::write(&there, b"").unwrap();
        let escaped = format!("file://{}", there.display()).replace(' ', "%20");
        let gone = folder.path().join("gone.tar");
        let urls = [
            there.display().to_string(),
            escaped,
            "s3://bucket/train.tar".to_owned(),
            gone.display().to_string(),
        ];
        let missing = missing_files("spec.data.train", &urls, DatasetType::Webdataset);
        let found = "does not exist".to_owned();
        let field = "spec.data.train".to_owned();
        assert_eq!(missing, [MissingFile { field, path: gone, found }]);
    }

    /// A folder and a dangling link were called missing.
    #[test]
    fn what_is_there_instead_of_a_data_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link.tar");
        std::os::unix::fs::symlink("/data/gone.tar", &link).unwrap();
        let found = |path: &Path| {
            missing_files("f", &[path.display().to_string()], DatasetType::Csv)[0].found.clone()
        };
        assert_eq!(found(folder.path()), "is a folder");
        assert_eq!(found(&link), "is a link to /data/gone.tar, which does not exist");
        assert_eq!(found(Path::new("/dev/null")), "is no regular file");
    }

    #[test]
    fn a_folder_of_images_is_a_folder_and_no_data_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = (folder.path().display().to_string(), folder.path().join("a"));
        std::fs::write(&file, b"").unwrap();
        let missing = |url: String, form| missing_files("f", &[url], form);
        assert_eq!(missing(format!("{path}/"), DatasetType::Folder), []);
        assert_eq!(missing("synthetic:1000".to_owned(), DatasetType::Synthetic), []);
        let wrong = missing(file.display().to_string(), DatasetType::Folder);
        assert_eq!(wrong[0].found, "is no folder");
    }

    const MANIFEST: &str = "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {name: tiny}\nspec:\n  \
         model: {name: ViT-B-32}\n  data: {train: /data/a.tar}\n  loss: {kind: siglip}\n  \
         optimizer: {lr: 1.0e-3}\n  schedule: {steps: 40}\n  batch: {global: 64}\n  \
         checkpoint: {uri: /data/checkpoints}\n";

    fn read(bytes: &[u8]) -> Result<JobFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.yaml");
        std::fs::write(&path, bytes).unwrap();
        JobFile::read(&path).map_err(|error| error.to_string())
    }

    /// moon#1903, serde-yaml#345: "more than one document" for a byte-order mark, which some editors write.
    #[test]
    fn a_manifest_with_a_byte_order_mark_is_read() {
        let marked = format!("\u{feff}{MANIFEST}");
        let utf16: Vec<u8> = marked.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for bytes in [marked.as_bytes(), &utf16] {
            let file = read(bytes).unwrap();
            assert_eq!((file.job.name.as_str(), file.yaml.as_str()), ("tiny", MANIFEST));
        }
    }

    /// What the coordinator reads is what was checked here.
    #[test]
    fn a_request_means_what_the_file_and_the_flags_mean() {
        let mut file = read(MANIFEST.replace("/data/a.tar", "a.tar").as_bytes()).unwrap();
        file.set_ranks(4).unwrap();
        let request = file.submit_request(String::new());
        let overrides = request.overrides.into_iter().collect();
        let overrides = ringmaster_manifest::Overrides::read(&overrides).unwrap();
        let (text, folder) = (&request.manifest_yaml, Path::new(&request.base_dir));
        let models = ModelCatalogue::builtin();
        let job = ringmaster_manifest::parse_with(text, "job.yaml", folder, overrides, &models);
        assert_eq!(job.unwrap(), file.job);
        assert_eq!((file.job.resources.ranks, file.job.resources.min_ranks), (4, 1));
        let mut sent = ModelCatalogue::builtin();
        sent.add("ViT-B-32", &request.models["ViT-B-32"]).unwrap();
        assert_eq!(
            sent.get("ViT-B-32"),
            models.get("ViT-B-32"),
            "the model that was checked is trained"
        );
    }

    #[test]
    fn a_file_that_is_no_text_or_far_too_long_is_refused_after_its_beginning() {
        let refused = read(b"\x1f\x8b\x08\0").unwrap_err();
        assert!(refused.contains("job.yaml:1:2: the byte 0x8b here is not UTF-8"), "{refused}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.yaml");
        // A hole takes no room on disk; read whole, it would take all memory.
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let refused = JobFile::read(&path).unwrap_err().to_string();
        assert!(
            refused.contains("job.yaml:1:1: the file has more than 2097152 bytes"),
            "{refused}"
        );
    }
}
