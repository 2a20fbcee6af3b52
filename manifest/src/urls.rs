//! Where data and checkpoints are: brace lists, `::` joins, absolute paths, URLs.

use std::path::{Component, Path, PathBuf};

use url::Url;

/// Shards one list may expand to.
const MAX_EXPANDED: usize = 1_000_000;

/// Schemes of object stores.
const STORE_SCHEMES: &[&str] = &["s3", "gs", "az"];

/// Returns the absolute paths that `text` names, in order.
///
/// `::` joins lists; `{000..127}`, `{0..10..2}` and `{a,b}` expand as webdataset expands them.
/// A relative path starts at `base_dir`; a `file://` URL becomes its path.
///
/// # Errors
/// What is wrong with the text, as the end of "… is X; expected …".
pub(crate) fn expand(text: &str, base_dir: &Path) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for part in text.split("::") {
        if part.trim().is_empty() {
            return Err("a path or URL on each side of ::".to_owned());
        }
        expand_braces(part, &mut all)?;
    }
    all.into_iter().map(|one| shard(one, base_dir)).collect()
}

/// Returns a path, or the URL of an object in a store or on a web server as it is written.
fn shard(text: String, base_dir: &Path) -> Result<String, String> {
    match text.split_once("://") {
        Some(("http" | "https", _)) => match Url::parse(&text) {
            Ok(url) if url.has_host() && url.path().len() > 1 => Ok(text),
            Ok(_) => Err("a URL of a file, as in https://host/00000.tar".to_owned()),
            Err(error) => Err(format!("a URL ({error})")),
        },
        Some((scheme, _)) if STORE_SCHEMES.contains(&scheme) => store_url(scheme, &text),
        _ => local_path(&text, base_dir),
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
            Url::from_file_path(&path)
                .map(|url| url.as_str().trim_end_matches('/').to_owned())
                .map_err(|()| "an absolute path".to_owned())
        }
    }
}

/// Returns what `text` names of weights: the URL of a path, a URL, a repository of a model hub or a
/// word, which is a tag, as they are.
///
/// # Errors
/// As [`expand`].
pub(crate) fn weights(text: &str, base_dir: &Path) -> Result<String, String> {
    const HUB: &str = "hf-hub:";
    const FORMS: &str = "a path, a URL as s3://bucket/runs or https://host/file.safetensors, \
                         hf-hub:ORG/NAME, or a tag of OpenCLIP's";
    let word = |text: &str| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    if let Some(repository) = text.strip_prefix(HUB) {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_./@".contains(c);
        return match !repository.is_empty() && repository.chars().all(known) {
            true => Ok(text.to_owned()),
            false => Err(FORMS.to_owned()),
        };
    }
    if let Some(folder) = text.strip_prefix("local-dir:") {
        return folder_url(folder, base_dir);
    }
    match text.split_once("://") {
        None if word(text) => Ok(text.to_owned()),
        Some(("http" | "https", _)) => match Url::parse(text) {
            Ok(url) if url.has_host() && url.path().len() > 1 && url.query().is_none() => {
                Ok(text.to_owned())
            }
            _ => {
                Err("a URL of a file without ?, as in https://host/weights.safetensors".to_owned())
            }
        },
        Some((scheme, _)) if scheme != "file" && !STORE_SCHEMES.contains(&scheme) => {
            Err(FORMS.to_owned())
        }
        _ => folder_url(text, base_dir),
    }
}

/// Returns the URL of a folder in an object store. Credentials come from the environment of the
/// process that opens it, so that a manifest can be shown to anybody.
fn store_url(scheme: &str, text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("a URL ({error})"))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("a URL that names a bucket, as in {scheme}://bucket/runs"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL without credentials, which come from the environment".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("a URL without ? and #, as in {scheme}://bucket/runs"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn local_path(text: &str, base_dir: &Path) -> Result<String, String> {
    let path = match text.split_once("://") {
        Some(("file", _)) => Url::parse(text)
            .ok()
            .and_then(|url| url.to_file_path().ok())
            .ok_or("a file URL with an absolute path, as in file:///data/00000.tar")?,
        Some(_) => return Err("a path, or a URL of file, s3, gs, az, http or https".to_owned()),
        None if text.starts_with("pipe:") => {
            return Err("a path or a file:// URL: a manifest runs no commands".to_owned());
        }
        None if text.starts_with('~') => {
            return Err("a path without ~, which only a shell expands".to_owned());
        }
        None => base_dir.join(text),
    };
    let path = std::path::absolute(&path).map_err(|error| format!("a usable path ({error})"))?;
    normal(&path).into_os_string().into_string().map_err(|_| "a path in UTF-8".to_owned())
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

fn expand_braces(text: &str, out: &mut Vec<String>) -> Result<(), String> {
    let Some((before, inside, after)) = first_braces(text)? else {
        if out.len() >= MAX_EXPANDED {
            return Err(format!("at most {MAX_EXPANDED} shards"));
        }
        out.push(text.to_owned());
        return Ok(());
    };
    for choice in choices(inside)? {
        expand_braces(&format!("{before}{choice}{after}"), out)?;
    }
    Ok(())
}

/// Splits at the first outermost pair of braces.
fn first_braces(text: &str) -> Result<Option<(&str, &str, &str)>, String> {
    let Some(start) = text.find('{') else {
        return if text.contains('}') { Err(unbalanced()) } else { Ok(None) };
    };
    let mut depth = 0_usize;
    for (offset, character) in text[start..].char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            let end = start + offset;
            return Ok(Some((&text[..start], &text[start + 1..end], &text[end + 1..])));
        }
    }
    Err(unbalanced())
}

fn unbalanced() -> String {
    "a closing brace for every opening one".to_owned()
}

fn choices(inside: &str) -> Result<Vec<String>, String> {
    if let Some(range) = range(inside) {
        return range;
    }
    let mut parts = vec![String::new()];
    let mut depth = 0_usize;
    for character in inside.chars() {
        match character {
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        parts.last_mut().expect("it starts with one part").push(character);
    }
    if parts.len() < 2 {
        return Err("a list {a,b} or a range {000..127} inside braces".to_owned());
    }
    Ok(parts)
}

/// Returns the numbers of `first..last` or `first..last..step`, padded as the ends are.
fn range(inside: &str) -> Option<Result<Vec<String>, String>> {
    let ends: Vec<&str> = inside.split("..").collect();
    let (first, last, step) = match ends[..] {
        [first, last] => (first, last, "1"),
        [first, last, step] => (first, last, step),
        _ => return None,
    };
    let number = |text: &str| text.parse::<i64>().ok();
    let (low, high, step) = (number(first)?, number(last)?, number(step)?.unsigned_abs().max(1));
    let padded = |text: &str| text.trim_start_matches('-').starts_with('0') && text.len() > 1;
    let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
    let count = low.abs_diff(high) / step + 1;
    if count > MAX_EXPANDED as u64 {
        return Some(Err(format!("at most {MAX_EXPANDED} shards")));
    }
    let sign = if high >= low { 1 } else { -1 };
    let nth = |n: u64| low + sign * (n * step) as i64;
    Some(Ok((0..count).map(|n| format!("{:0width$}", nth(n))).collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Vec<String> {
        expand(text, Path::new("/base")).unwrap()
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
    fn checkpoints_may_lie_in_object_stores_but_credentials_not_in_the_manifest() {
        let url = |text| folder_url(text, Path::new("/base"));
        for text in ["s3://bucket/runs", "gs://bucket/runs", "az://container/a%20b", "s3://bucket"]
        {
            assert_eq!(url(text).as_deref(), Ok(text));
        }
        assert_eq!(url("s3://bucket/runs/").as_deref(), Ok("s3://bucket/runs"));
        let refused = |text| url(text).unwrap_err();
        assert_eq!(refused("s3:///runs"), "a URL that names a bucket, as in s3://bucket/runs");
        let expected = "a URL without credentials, which come from the environment";
        assert_eq!(refused("s3://key:secret@bucket/runs"), expected);
        assert_eq!(refused("s3://b/r?x=1"), "a URL without ? and #, as in s3://bucket/runs");
        assert!(refused("ftp://host/runs").starts_with("a path, or a URL as file:///runs, s3://"));
    }

    #[test]
    fn shards_on_web_servers_are_named_by_their_urls() {
        let stored = expand("s3://bucket/a b/{0..1}.tar", Path::new("/base")).unwrap();
        assert_eq!(stored, ["s3://bucket/a%20b/0.tar", "s3://bucket/a%20b/1.tar"]);
        let urls = expand("http://host:8080/a/{0..1}.tar", Path::new("/base")).unwrap();
        assert_eq!(urls, ["http://host:8080/a/0.tar", "http://host:8080/a/1.tar"]);
        let refused = |text| expand(text, Path::new("/base")).unwrap_err();
        assert_eq!(refused("https://host/"), "a URL of a file, as in https://host/00000.tar");
        assert_eq!(refused("https://host:x/a.tar"), "a URL (invalid port number)");
    }

    #[test]
    fn what_cannot_be_read_says_what_can() {
        let refused = |text| expand(text, Path::new("/base")).unwrap_err();
        let forms = "a path, or a URL of file, s3, gs, az, http or https";
        assert_eq!(refused("hdfs://b/k"), forms);
        assert_eq!(refused("pipe:curl x"), "a path or a file:// URL: a manifest runs no commands");
        assert_eq!(refused("~/x"), "a path without ~, which only a shell expands");
        assert_eq!(refused("a{0..3"), "a closing brace for every opening one");
        assert_eq!(refused("a{x}"), "a list {a,b} or a range {000..127} inside braces");
        assert_eq!(refused("{0..9999999}"), "at most 1000000 shards");
        assert_eq!(refused("a::"), "a path or URL on each side of ::");
    }
}
