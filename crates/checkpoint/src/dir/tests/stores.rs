//! Folders in every kind of store that tests can have.

use std::time::Duration;

use ringmaster_tests::proxy::{FaultyProxy, Trouble, What};
use ringmaster_tests::s3::{self, Bucket};
use tempfile::TempDir;

use ringmaster_store::{Settings, Store};

use crate::dir::CheckpointDir;

/// A folder, what kind of store it is in, and what must live as long.
pub(crate) struct Subject {
    pub(crate) store: &'static str,
    pub(crate) dir: CheckpointDir,
    _folder: Option<TempDir>,
    _proxy: Option<FaultyProxy>,
}

/// Returns an empty folder in each kind of store; the real S3 server's only where there is one.
pub(crate) fn subjects() -> Vec<Subject> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a job & ünïcode").to_str().unwrap().to_owned();
    let files = CheckpointDir::open(&path).unwrap();
    let subject = |store, dir| Subject { store, dir, _folder: None, _proxy: None };
    let mut all = vec![
        Subject { _folder: Some(folder), ..subject("files", files) },
        subject("memory", CheckpointDir::memory()),
    ];
    if let Some(server) = s3::server_for_part() {
        let folder = "runs/a%20job%20&%20%C3%BCn%C3%AFcode";
        all.push(subject("s3", on_s3(&server.bucket(), folder, &[])));
        let bucket = server.bucket();
        let proxy = FaultyProxy::start(bucket.address, 7);
        proxy.set(misbehaviour());
        let dir = on_s3(&bucket.through(proxy.address), folder, &[]);
        all.push(Subject { _proxy: Some(proxy), ..subject("s3 behind a faulty proxy", dir) });
    }
    all
}

/// Everything that a store and the way to it may do to a request that will be made again.
fn misbehaviour() -> Vec<Trouble> {
    vec![
        Trouble::new(What::SlowDown(None)).one_in(23),
        Trouble::new(What::SlowDown(Some(1))).times(1),
        Trouble::new(What::Refuse(500, "InternalError")).one_in(29),
        Trouble::new(What::CutRequest).one_in(31),
        Trouble::new(What::LoseReply).one_in(37),
        Trouble::new(What::CutResponse).one_in(41),
        Trouble::new(What::Delay(Duration::from_millis(5))).one_in(5),
    ]
}

/// Opens a folder of a bucket, with more settings than those that lead to it.
pub(crate) fn on_s3(bucket: &Bucket, folder: &str, more: &[(&str, &str)]) -> CheckpointDir {
    CheckpointDir::of(opened(bucket, folder, more), &bucket.url(folder))
}

/// The same as a store.
pub(crate) fn opened(bucket: &Bucket, folder: &str, more: &[(&str, &str)]) -> Store {
    let settings = Settings::new(bucket.environment_with(more).into_iter());
    ringmaster_store::open_with(&bucket.url(folder), &settings).unwrap()
}
