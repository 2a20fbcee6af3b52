//! Bytes from a hub into the cache: resumed where they broke off, verified, then given their name.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use reqwest::StatusCode;
use sha2::{Digest as _, Sha256};

use super::cache::{Cache, make_parent};
use super::client::{Client, Found};
use super::repository::is_sha256;
use super::{Error, OnProgress, Repository};

/// Attempts in a row that may bring nothing.
const ATTEMPTS: usize = 5;

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file, by its name in the repository.
    pub file: &'a str,
    /// Bytes that are there, those of earlier attempts included.
    pub done: u64,
    /// Bytes that it has, if the hub says so.
    pub total: Option<u64>,
}

/// Makes the cache hold a file that the hub has described; returns its path there.
pub(super) async fn store(
    client: &Client<'_>,
    cache: &Cache,
    repository: &Repository,
    found: &Found,
    on_progress: OnProgress<'_>,
) -> Result<PathBuf, Error> {
    let Found { file, commit, etag, .. } = found;
    let present = cache.find(commit, file);
    let path = match present {
        Some(path) => path,
        None => {
            let lock = cache.lock(etag).await?;
            if !is_whole(&cache.blob(etag), found.size) {
                Download { client, cache, repository, found }.run(on_progress).await?;
            }
            drop(lock);
            cache.link(commit, file, etag)?
        }
    };
    cache.refer(repository.revision(), commit)?;
    Ok(path)
}

fn is_whole(blob: &Path, size: Option<u64>) -> bool {
    fs::metadata(blob).is_ok_and(|blob| size.is_none_or(|size| size == blob.len()))
}

struct Download<'a> {
    client: &'a Client<'a>,
    cache: &'a Cache,
    repository: &'a Repository,
    found: &'a Found,
}

impl Download<'_> {
    async fn run(&self, on_progress: OnProgress<'_>) -> Result<(), Error> {
        let path = self.cache.incomplete(&self.found.etag);
        make_parent(&path)?;
        let pauses = self.pauses();
        let mut left = pauses.build();
        loop {
            let before = length(&path);
            let outcome = self.attempt(&path, on_progress).await;
            let Err(error) = outcome else { break };
            if !error.is_of_the_network() {
                return Err(error);
            }
            if length(&path) > before {
                left = pauses.build();
            }
            let Some(pause) = left.next() else {
                let (done, total) = (length(&path), self.found.size);
                let (url, source) = (self.url()?, Box::new(error));
                return Err(Error::BrokenOff { url, done, total, attempts: ATTEMPTS, source });
            };
            tokio::time::sleep(pause).await;
        }
        if let Err(error) = self.verify(&path) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let blob = self.cache.blob(&self.found.etag);
        fs::rename(&path, &blob).map_err(Error::cache("name", &blob))
    }

    /// Returns the pauses between attempts that bring nothing.
    fn pauses(&self) -> ExponentialBuilder {
        let pauses = ExponentialBuilder::new().with_min_delay(self.client.settings.pause);
        pauses.without_max_delay().with_max_times(ATTEMPTS - 1)
    }

    /// Takes up the download where the file ends.
    async fn attempt(&self, path: &Path, on_progress: OnProgress<'_>) -> Result<(), Error> {
        let Found { file, size: total, .. } = self.found;
        let mut start = length(path);
        if *total == Some(start) {
            return Ok(());
        }
        if total.is_none_or(|total| start > total) {
            start = 0;
        }
        let mut response = self.client.get(self.repository, self.found, start).await?;
        if start > 0 && response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            response = self.client.get(self.repository, self.found, 0).await?;
        }
        // A server may send everything although a part was asked for, but no other part.
        match response.status() {
            StatusCode::OK => start = 0,
            StatusCode::PARTIAL_CONTENT if begins_at(&response, start) => {}
            StatusCode::PARTIAL_CONTENT => {
                return Err(self.content("first byte", "another", &start.to_string())?);
            }
            status => return Err(Error::Status { url: self.url()?, status: status.as_u16() }),
        }
        let out = File::options().create(true).append(true).open(path);
        let mut out = out.map_err(Error::cache("open", path))?;
        out.set_len(start).map_err(Error::cache("shorten", path))?;
        let mut done = start;
        let url = self.url()?;
        let network = |source: reqwest::Error| Error::Network {
            url: url.clone(),
            source: source.without_url(),
        };
        while let Some(bytes) = response.chunk().await.map_err(network)? {
            done += bytes.len() as u64;
            if let Some(total) = total.filter(|total| done > *total) {
                let _ = fs::remove_file(path);
                return Err(self.content("size", "more", &total.to_string())?);
            }
            out.write_all(&bytes).map_err(Error::cache("write", path))?;
            on_progress(Progress { file, done, total: *total });
        }
        out.sync_all().map_err(Error::cache("write", path))
    }

    /// Checks size and, where the hub names it, SHA-256 of what came.
    fn verify(&self, path: &Path) -> Result<(), Error> {
        let found = length(path);
        if let Some(expected) = self.found.size.filter(|size| *size != found) {
            return Err(self.content("size", &found.to_string(), &expected.to_string())?);
        }
        let expected = &self.found.etag;
        if !is_sha256(expected) {
            return Ok(());
        }
        let found = sha256(path).map_err(Error::cache("read", path))?;
        if &found == expected { Ok(()) } else { Err(self.content("sha256", &found, expected)?) }
    }

    fn content(&self, what: &'static str, found: &str, expected: &str) -> Result<Error, Error> {
        let (found, expected) = (found.to_owned(), expected.to_owned());
        Ok(Error::Content { url: self.url()?, what, found, expected })
    }

    fn url(&self) -> Result<String, Error> {
        let url = self.client.url(self.repository, &self.found.commit, &self.found.file)?;
        Ok(url.into())
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Whether a part begins where it was asked for: `Content-Range: bytes START-END/SIZE`.
fn begins_at(response: &reqwest::Response, start: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
    first.and_then(|first| first.parse().ok()) == Some(start)
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            len => hasher.update(&buffer[..len]),
        }
    }
}
