//! Where data and checkpoints are: brace lists, `::` joins, absolute paths, URLs.

mod braces;

use std::path::{Component, Path, PathBuf};

use percent_encoding::percent_decode_str;
use ringmaster_words::{HF_HUB, LOCAL_DIR};
use url::Url;

use crate::limits::MAX_SYNTHETIC;
use crate::spec::SYNTHETIC;
use crate::words;

pub(crate) use braces::Budget;
use braces::{Extent, Pattern};

/// Schemes of object stores.
const STORE_SCHEMES: &[&str] = &["s3", "gs", "az"];

/// What belongs in the place of a relative path, where the manifest has no folder.
const NO_FOLDER: &str =
    "an absolute path or a URL, as no folder is known that relative paths start at";

/// What stands between two names in the text that carries a job.
const SEPARATOR: u64 = 3;

/// Returns the absolute paths and URLs that `text` names, in order, and takes them from `budget`.
///
/// `::` joins lists; `{000..127}`, `{0..10..2}` and `{a,b}` expand as webdataset expands them.
/// A relative path starts at `base_dir`; a `file://` URL becomes its path.
///
/// # Errors
/// What is wrong with the text, as the end of "… is X; expected …". Repeats nothing of it that may be
/// secret.
pub(crate) fn expand(
    text: &str,
    base_dir: &Path,
    budget: &mut Budget,
) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for part in text.split("::") {
        if part.trim().is_empty() {
            return Err("a path or URL on each side of ::".to_owned());
        }
        let pattern = Pattern::parse(part)?;
        let Extent { count, bytes } = pattern.extent();
        let base = if is_absolute(part) { 0 } else { base_dir.as_os_str().len() as u64 + 1 };
        let bytes = bytes.saturating_add(count.saturating_mul(base + SEPARATOR));
        budget.take(Extent { count, bytes })?;
        let before = all.len();
        for one in pattern.expand() {
            all.push(shard(&one, base_dir)?);
        }
        // A URL's escapes are longer than what they stand for.
        let taken = all[before..].iter().map(|name| name.len() as u64 + SEPARATOR).sum::<u64>();
        budget.take(Extent { count: 0, bytes: taken.saturating_sub(bytes) })?;
    }
    Ok(all)
}

fn is_absolute(text: &str) -> bool {
    text.starts_with('/') || text.contains("://")
}

/// Returns a path, or the URL of an object in a store or on a web server.
fn shard(text: &str, base_dir: &Path) -> Result<String, String> {
    if let Some(samples) = text.strip_prefix(SYNTHETIC) {
        let known =
            samples.parse::<u64>().is_ok_and(|samples| (1..=MAX_SYNTHETIC).contains(&samples));
        let forms =
            || format!("a number of samples from 1 to {MAX_SYNTHETIC}, as in {SYNTHETIC}1000000");
        return if known { Ok(text.to_owned()) } else { Err(forms()) };
    }
    let mut place = shard_or_folder(text, base_dir)?;
    // It says that a folder of images is meant.
    if text.ends_with('/') && !place.ends_with('/') {
        place.push('/');
    }
    Ok(place)
}

fn shard_or_folder(text: &str, base_dir: &Path) -> Result<String, String> {
    match text.split_once("://") {
        Some(("http" | "https", _)) => web_url(text, "https://host/00000.tar"),
        Some((scheme, _)) if STORE_SCHEMES.contains(&scheme) => store_url(scheme, text),
        _ => local_path(text, base_dir),
    }
}

/// Returns the URL of the folder for checkpoints that `text`, a path or URL, names.
///
/// # Errors
/// As [`expand`].
pub(crate) fn folder_url(text: &str, base_dir: &Path) -> Result<String, String> {
    const FORMS: &str = "a path, or a URL as file:///runs, s3://bucket/runs, gs://bucket/runs or \
                         az://container/runs";
    match text.split_once("://") {
        Some((scheme, _)) if STORE_SCHEMES.contains(&scheme) => store_url(scheme, text),
        Some((scheme, _)) if scheme != "file" => Err(FORMS.to_owned()),
        _ => {
            let path = local_path(text, base_dir)?;
            let url = Url::from_file_path(&path).map_err(|()| "an absolute path".to_owned())?;
            Ok(match url.path() {
                "/" => url.to_string(),
                _ => url.as_str().trim_end_matches('/').to_owned(),
            })
        }
    }
}

/// Returns what `text` names of weights: the URL of a path, a URL, a repository of a model hub or a
/// word, which is a tag, as they are.
///
/// # Errors
/// As [`expand`].
pub(crate) fn weights(text: &str, base_dir: &Path) -> Result<String, String> {
    const FORMS: &str = "a path, a URL as s3://bucket/runs or https://host/file.safetensors, \
                         hf-hub:ORG/NAME, or a tag of OpenCLIP's";
    let word = |text: &str| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    if let Some(repository) = text.strip_prefix(HF_HUB) {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_./@".contains(c);
        return if !repository.is_empty() && repository.chars().all(known) {
            Ok(text.to_owned())
        } else {
            Err(FORMS.to_owned())
        };
    }
    if let Some(folder) = text.strip_prefix(LOCAL_DIR) {
        return folder_url(folder, base_dir);
    }
    match text.split_once("://") {
        None if word(text) => Ok(text.to_owned()),
        Some(("http" | "https", _)) => web_url(text, "https://host/weights.safetensors"),
        Some((scheme, _)) if scheme != "file" && !STORE_SCHEMES.contains(&scheme) => {
            Err(FORMS.to_owned())
        }
        _ => folder_url(text, base_dir),
    }
}

/// Returns a path that begins with a dot from the manifest's folder on; other paths, and names of
/// repositories, as they are.
///
/// # Errors
/// As [`expand`].
pub(crate) fn tokenizer(text: &str, base_dir: &Path) -> Result<String, String> {
    if text.contains("://") || lacks_a_slash(text) {
        return Err(
            "a path or the name of a repository: no tokenizer is read from a URL".to_owned()
        );
    }
    if !text.starts_with('.') {
        return Ok(text.to_owned());
    }
    let path = base_dir.join(text);
    if path.is_relative() { Err(NO_FOLDER.to_owned()) } else { Ok(path.display().to_string()) }
}

/// Returns the URL of a file on a web server, as it is written.
fn web_url(text: &str, example: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("a URL ({error})"))?;
    if !url.has_host() || url.path().len() <= 1 {
        return Err(format!("a URL of a file, as in {example}"));
    }
    check_url(&url, example)?;
    Ok(text.to_owned())
}

/// Returns the URL of an object or a folder in a store.
fn store_url(scheme: &str, text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("a URL ({error})"))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("a URL that names a bucket, as in {scheme}://bucket/runs"));
    }
    check_url(&url, &format!("{scheme}://bucket/runs"))?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Refuses what no store takes, and what is not to be repeated: a manifest is stored, shown and copied into
/// checkpoints, and credentials come from the environment of the process that opens a URL.
fn check_url(url: &Url, example: &str) -> Result<(), String> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "a URL without a name or password before @: a manifest is stored and shown, and \
                    credentials come from the environment"
                .to_owned(),
        );
    }
    if url.query().is_some() {
        return Err(format!(
            "a URL without ? and what follows it, as in {example}: a manifest is stored and shown, and \
             signatures and keys come from the environment"
        ));
    }
    if url.fragment().is_some() {
        return Err(format!("a URL without # and what follows it, as in {example}"));
    }
    check_parts(url)
}

/// Refuses paths that stores cannot name an object by.
fn check_parts(url: &Url) -> Result<(), String> {
    let path = url.path();
    let Ok(decoded) = percent_decode_str(path).decode_utf8() else {
        return Err("a URL whose path is UTF-8 behind its % escapes".to_owned());
    };
    if decoded.chars().any(|c| c.is_ascii_control()) {
        return Err("a URL without control characters".to_owned());
    }
    let inner = decoded.strip_prefix('/').unwrap_or(&decoded).trim_end_matches('/');
    if inner.split('/').any(|part| part.is_empty()) && !inner.is_empty() {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let place = url.as_str().strip_suffix(path).unwrap_or_default();
        let right = format!("{place}/{}", parts.join("/"));
        return Err(format!(
            "a URL without empty parts between slashes, as in {}",
            words::short(&right)
        ));
    }
    Ok(())
}

fn local_path(text: &str, base_dir: &Path) -> Result<String, String> {
    let path = match text.split_once("://") {
        Some(("file", _)) => file_url(text)?,
        Some(_) => return Err("a path, or a URL of file, s3, gs, az, http or https".to_owned()),
        None if text.starts_with("pipe:") => {
            return Err("a path or a file:// URL: a manifest runs no commands".to_owned());
        }
        None if text.starts_with('~') => {
            return Err("a path without ~, which only a shell expands".to_owned());
        }
        None if lacks_a_slash(text) => {
            return Err("a URL with :// behind its scheme, or a path".to_owned());
        }
        None => base_dir.join(text),
    };
    if path.is_relative() {
        return Err(NO_FOLDER.to_owned());
    }
    let path = normal(&path).into_os_string().into_string();
    let path = path.map_err(|_| "a path in UTF-8".to_owned())?;
    if path.chars().any(|c| c.is_ascii_control()) {
        Err("a path without control characters".to_owned())
    } else {
        Ok(path)
    }
}

/// Returns whether a text begins as a URL does, but for a slash.
fn lacks_a_slash(text: &str) -> bool {
    let scheme = text.split_once(":/").map_or("", |(scheme, _)| scheme);
    matches!(scheme, "http" | "https" | "file") || STORE_SCHEMES.contains(&scheme)
}

fn file_url(text: &str) -> Result<PathBuf, String> {
    let parsed = Url::parse(text).ok();
    if parsed.as_ref().is_some_and(|url| url.query().is_some() || url.fragment().is_some()) {
        return Err("a file URL without ? and #; in a file's name, write %3F and %23".to_owned());
    }
    parsed
        .and_then(|url| url.to_file_path().ok())
        .ok_or_else(|| "a file URL with an absolute path, as in file:///data/00000.tar".to_owned())
}

/// Removes `.` and `..` without looking at the file system.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Vec<String> {
        expand(text, Path::new("/base"), &mut Budget::default()).unwrap()
    }

    #[test]
    fn brace_lists_and_joins_expand_in_order() {
        assert_eq!(
            expanded("/d/{098..101}.tar"),
            ["/d/098.tar", "/d/099.tar", "/d/100.tar", "/d/101.tar"]
        );
        assert_eq!(
            expanded("{a,b{1,2}}.tar::c"),
            ["/base/a.tar", "/base/b1.tar", "/base/b2.tar", "/base/c"]
        );
        assert_eq!(expanded("/{4..0..2}"), ["/4", "/2", "/0"]);
        assert_eq!(expanded("/{a,b}/{0..1}").len(), 4);
    }

    #[test]
    fn folders_keep_the_slash_that_says_so() {
        assert_eq!(expanded("images/{a,b}/"), ["/base/images/a/", "/base/images/b/"]);
        assert_eq!(expanded("s3://bucket/images/"), ["s3://bucket/images/"]);
        assert_eq!(expanded("/images"), ["/images"]);
    }

    #[test]
    fn a_source_of_no_data_has_a_number_of_samples() {
        assert_eq!(expanded("synthetic:1000"), ["synthetic:1000"]);
        for wrong in [
            "synthetic:",
            "synthetic:0",
            "synthetic:-1",
            "synthetic:1e6",
            "synthetic:99999999999999999999",
        ] {
            let read = expand(wrong, Path::new("/base"), &mut Budget::default());
            assert!(
                read.is_err_and(|expected| expected.contains("as in synthetic:1000000")),
                "{wrong}"
            );
        }
    }

    #[test]
    fn paths_become_absolute_without_touching_the_file_system() {
        assert_eq!(expanded("../x/./y.tar"), ["/x/y.tar"]);
        assert_eq!(expanded("file:///a/b%20c.tar"), ["/a/b c.tar"]);
        assert_eq!(
            folder_url("runs/my job", Path::new("/base")).unwrap(),
            "file:///base/runs/my%20job"
        );
    }

    #[test]
    fn weights_are_paths_urls_repositories_or_tags() {
        let read = |text| weights(text, Path::new("/base"));
        for (given, expected) in [
            ("./w.pt", "file:///base/w.pt"),
            ("w.safetensors", "file:///base/w.safetensors"),
            ("/runs/job", "file:///runs/job"),
            ("s3://bucket/w.pt", "s3://bucket/w.pt"),
            ("https://host/w.pt", "https://host/w.pt"),
            ("hf-hub:timm/vit_base.augreg@main", "hf-hub:timm/vit_base.augreg@main"),
            ("laion2b_s34b_b79k", "laion2b_s34b_b79k"),
            ("local-dir:/models/x", "file:///models/x"),
            ("none", "none"),
        ] {
            assert_eq!(read(given).as_deref(), Ok(expected), "{given}");
        }
        for wrong in [
            "hf-hub:",
            "hf-hub:a b",
            "ftp://host/w.pt",
            "https://host",
            "https://host/w.pt?download=true",
            "~/w.pt",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_tokenizer_is_a_path_or_a_repository() {
        let read = |text| tokenizer(text, Path::new("/base"));
        assert_eq!(read("./t.json").unwrap(), "/base/./t.json");
        assert_eq!(read("org/name").unwrap(), "org/name");
        for url in ["https://u:p@host/t.json", "https:/u:p@host/t.json", "s3://bucket/t.json"] {
            assert!(read(url).unwrap_err().starts_with("a path or the name of"), "{url}");
        }
    }

    #[test]
    fn checkpoints_may_lie_in_object_stores_but_credentials_not_in_the_manifest() {
        let url = |text| folder_url(text, Path::new("/base"));
        for text in ["s3://bucket/runs", "gs://bucket/runs", "az://container/a%20b", "s3://bucket"]
        {
            assert_eq!(url(text).as_deref(), Ok(text));
        }
        assert_eq!(url("s3://bucket/runs/").as_deref(), Ok("s3://bucket/runs"));
        let refused = |text| url(text).unwrap_err();
        assert_eq!(refused("s3:///runs"), "a URL that names a bucket, as in s3://bucket/runs");
        let credentials = "a URL without a name or password before @: a manifest is stored and shown, and \
                           credentials come from the environment";
        assert_eq!(refused("s3://key:secret@bucket/runs"), credentials);
        let query = "a URL without ? and what follows it, as in s3://bucket/runs: a manifest is stored and \
                     shown, and signatures and keys come from the environment";
        assert_eq!(refused("s3://b/r?x=1"), query);
        assert_eq!(
            refused("s3://b/r#x"),
            "a URL without # and what follows it, as in s3://bucket/runs"
        );
        assert!(refused("ftp://host/runs").starts_with("a path, or a URL as file:///runs, s3://"));
    }

    #[test]
    fn shards_on_web_servers_are_named_by_their_urls() {
        let stored = expanded("s3://bucket/a b/{0..1}.tar");
        assert_eq!(stored, ["s3://bucket/a%20b/0.tar", "s3://bucket/a%20b/1.tar"]);
        let urls = expanded("http://host:8080/a/{0..1}.tar");
        assert_eq!(urls, ["http://host:8080/a/0.tar", "http://host:8080/a/1.tar"]);
        let refused = |text| expand(text, Path::new("/base"), &mut Budget::default()).unwrap_err();
        assert_eq!(refused("https://host/"), "a URL of a file, as in https://host/00000.tar");
        assert_eq!(refused("https://host:x/a.tar"), "a URL (invalid port number)");
    }

    #[test]
    fn what_cannot_be_read_says_what_can() {
        let refused = |text| expand(text, Path::new("/base"), &mut Budget::default()).unwrap_err();
        let forms = "a path, or a URL of file, s3, gs, az, http or https";
        assert_eq!(refused("hdfs://b/k"), forms);
        assert_eq!(refused("pipe:curl x"), "a path or a file:// URL: a manifest runs no commands");
        assert_eq!(refused("~/x"), "a path without ~, which only a shell expands");
        assert_eq!(
            refused("a{0..3"),
            "a closing brace for every opening one, and the { at character 2 has none"
        );
        assert_eq!(
            refused("ä{0..3}}"),
            "an opening brace for every closing one, and the } at character 8 has none"
        );
        assert_eq!(
            refused("a{x}"),
            "a list {a,b} or a range {000..127} inside braces, and those at character 2 hold neither"
        );
        assert_eq!(refused("a::"), "a path or URL on each side of ::");
        assert_eq!(refused("a\0b"), "a path without control characters");
        assert_eq!(refused("s3:/bucket/a"), "a URL with :// behind its scheme, or a path");
        assert_eq!(
            refused("file:///a.tar?sig=x"),
            "a file URL without ? and #; in a file's name, write %3F and %23"
        );
    }

    /// What all lists stand for has to fit one message, however it is divided among them.
    #[test]
    fn lists_share_what_they_may_expand_to() {
        let mut budget = Budget::default();
        let mut expand = |text: &str| expand(text, Path::new("/base"), &mut budget);
        assert_eq!(expand("/{0..599999}").unwrap().len(), 600_000);
        let expected = "at most 1000000 shards in all lists together, and with this text there would be \
                        1200000";
        assert_eq!(expand("/{0..599999}").unwrap_err(), expected);
        assert_eq!(expand("/{0..199999}").unwrap().len(), 200_000);
        let name = "x".repeat(1000);
        let refused = expand(&format!("/{name}{{0..9999}}")).unwrap_err();
        assert!(refused.starts_with("names of at most 12582912 bytes in all lists"), "{refused}");
    }

    /// Reported of s3 after four attempts: "there is no store for s3://".
    #[test]
    fn empty_parts_of_a_url_are_refused_wherever_one_stands() {
        let base = Path::new("/base");
        type Reads = fn(&str, &Path) -> Result<String, String>;
        let lists: Reads =
            |text, base| expand(text, base, &mut Budget::default()).map(|all| all.concat());
        for place in [lists, folder_url, weights] {
            let read = |text: &str| place(text, base);
            for given in ["s3://bucket//folder", "s3://bucket/%2Ffolder", "s3://bucket///folder//"]
            {
                let refused = read(given).unwrap_err();
                let expected = "a URL without empty parts between slashes, as in s3://bucket/";
                assert!(refused.starts_with(expected), "{given}: {refused}");
            }
            assert_eq!(
                read("s3://bucket/folder/").unwrap().trim_end_matches('/'),
                "s3://bucket/folder"
            );
            assert_eq!(read("s3://bucket/a%00b").unwrap_err(), "a URL without control characters");
            let escapes = "a URL whose path is UTF-8 behind its % escapes";
            assert_eq!(read("s3://bucket/a%FFb").unwrap_err(), escapes);
        }
        assert_eq!(
            lists("https://host/a//b.tar", base).unwrap_err(),
            "a URL without empty parts between slashes, as in https://host/a/b.tar"
        );
        assert_eq!(lists("/a//b.tar", base).unwrap(), "/a/b.tar");
        assert_eq!(folder_url("/", base).unwrap(), "file:///");
    }

    /// genblaze#75: such URLs were taken, stored in the database and shown; the rank refused them.
    #[test]
    fn passwords_and_signatures_are_refused_in_urls_of_data_and_weights() {
        let base = Path::new("/base");
        for given in [
            "https://user:hunter2@host/a.tar",
            "https://hunter2@host/a.tar",
            "https://host/a.tar?X-Amz-Signature=hunter2",
            "https://account.blob.core.windows.net/c/a.tar?sv=2024&sig=hunter2",
            "https://host/a.tar#hunter2",
            "s3://key:hunter2@bucket/a.tar",
            "s3://bucket/a.tar?versionId=hunter2",
        ] {
            for read in [
                expand(given, base, &mut Budget::default()).map(|all| all.concat()),
                weights(given, base),
            ] {
                let refused = read.unwrap_err();
                assert!(refused.starts_with("a URL without "), "{given}: {refused}");
                assert!(!refused.contains("hunter2"), "{refused}");
            }
        }
    }
}
