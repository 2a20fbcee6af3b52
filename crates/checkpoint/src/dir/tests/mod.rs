//! Folders of checkpoints by their URLs; `contract` holds for every store, and `stores` makes them.

mod contract;
pub(crate) mod stores;

use ringmaster_proto::v1::Generation;

use super::*;

#[test]
fn places_that_cannot_hold_checkpoints_say_what_to_write_instead() {
    for (url, reason) in [
        ("ftp://host/runs", "there is no store for ftp://; write s3://"),
        ("https://host/runs", "a web server takes no checkpoints"),
        ("runs", "neither an absolute path nor a URL"),
        ("file://other/runs", "a file URL names no other host"),
    ] {
        let error = CheckpointDir::open(url).unwrap_err().to_string();
        assert!(error.contains(url) && error.contains(reason), "{error}");
    }
}

#[test]
fn a_checkpoints_own_folder_is_told_from_a_jobs() {
    let dir = CheckpointDir::open("file:///runs/a%20b/step-0000000012.g1.7/").unwrap();
    let (job, name) = dir.split().unwrap();
    assert_eq!(name, StepName { generation: Generation::new(1, 7), step: 12 });
    assert_eq!(job.url, "file:///runs/a%20b");
    assert_eq!(job.local.as_deref(), Some(FsPath::new("/runs/a b")));
    assert_eq!(job.base.as_ref(), "runs/a b");
    assert!(job.split().is_none());
}

#[test]
fn a_folder_is_the_same_however_it_is_written() {
    let open = |url: &str| CheckpointDir::open(url).unwrap();
    assert!(open("/runs/a").is_same(&open("file:///runs/a/")));
    assert!(!open("/runs/a").is_same(&open("/runs/b")));
    assert_ne!(origin("s3://a/runs"), origin("s3://b/runs"));
    assert_ne!(origin("s3://a/runs"), origin("/runs"));
}
