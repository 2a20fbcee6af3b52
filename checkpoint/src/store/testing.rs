//! Places in every kind of store that tests can have.

use std::net::SocketAddr;

use ringmaster_tests::s3::{self, Bucket};
use tempfile::TempDir;

use super::{Settings, open_with};
use crate::place::Place;

/// A place, what kind of store it is in, and what must live as long.
pub(crate) struct Subject {
    pub(crate) store: &'static str,
    pub(crate) place: Place,
    _folder: Option<TempDir>,
}

/// Returns an empty place in each kind of store; the real S3 server's only where there is one.
pub(crate) fn subjects() -> Vec<Subject> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a job & ünïcode").to_str().unwrap().to_owned();
    let files = Place::open(&path).unwrap();
    let mut all = vec![
        Subject { store: "files", place: files, _folder: Some(folder) },
        Subject { store: "memory", place: Place::memory(), _folder: None },
    ];
    if let Some(server) = s3::server() {
        let place = on_s3(&server.bucket(), "runs/a%20job%20&%20%C3%BCn%C3%AFcode", &[]);
        all.push(Subject { store: "s3", place, _folder: None });
    }
    all
}

/// Opens a folder of a bucket, with more settings than those that lead to it.
pub(crate) fn on_s3(bucket: &Bucket, folder: &str, more: &[(&str, &str)]) -> Place {
    let url = bucket.url(folder);
    let opened = open_with(&url, &settings(bucket, more)).unwrap();
    Place::of(opened, &url)
}

/// Returns the settings that lead to a bucket, and more; the later ones count.
pub(crate) fn settings(bucket: &Bucket, more: &[(&str, &str)]) -> Settings {
    let mut variables = bucket.environment();
    let more = more.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    variables.extend(more);
    Settings::new(variables.into_iter())
}

/// Returns an address on loopback at which nothing answers.
pub(crate) fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
