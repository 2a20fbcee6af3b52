//! One fault at a time between a store and its user, and what becomes of it.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use ringmaster_tests::logged::logged;
use ringmaster_tests::processes::{LIMIT, eventually};
use ringmaster_tests::proxy::{FaultyProxy, Trouble, What};
use ringmaster_tests::s3::{self, Bucket};
use ringmaster_tests::skips;

use super::{Error, Kind, PATIENCE, STALL, Settings, Store, open_with};

/// Smallest part of an upload that S3 takes, the last excepted.
const PART: usize = 5 << 20;

/// A bucket behind a proxy; none without a server.
struct Troubled {
    bucket: Bucket,
    proxy: FaultyProxy,
    store: Store,
}

impl Troubled {
    fn new(settings: &[(&str, &str)]) -> Option<Self> {
        let bucket = s3::server()?.bucket();
        let proxy = FaultyProxy::start(bucket.address, 3);
        let through = bucket.through(proxy.address);
        let settings = Settings::new(through.environment_with(settings).into_iter());
        let store = open_with(&through.url("runs"), &settings).unwrap();
        Some(Self { bucket, proxy, store })
    }

    fn put(&self, object: &str, bytes: &[u8]) -> object_store::Result<()> {
        let at = Path::from("runs").join(object);
        block_on(self.store.patient().put(&at, bytes.to_vec().into())).map(|_| ())
    }

    /// What lies in the bucket, with nothing in between.
    fn there(&self, object: &str) -> Vec<u8> {
        self.bucket.read(&format!("runs/{object}"))
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_request_that_stalls_is_given_up_and_made_again() {
    let Some(troubled) = Troubled::new(&[(STALL, "0.5")]) else { return };
    let stall = What::BlackHole(Duration::from_secs(600));
    troubled.proxy.set(vec![Trouble::new(stall).method("PUT").times(1)]);
    troubled.put("object", b"x").unwrap();
    assert_eq!(troubled.proxy.struck(), 1);
    assert_eq!(troubled.there("object"), b"x");
}

#[test]
fn a_store_that_asks_to_come_later_is_left_alone_until_then() {
    let Some(troubled) = Troubled::new(&[]) else { return };
    troubled.proxy.set(vec![Trouble::new(What::SlowDown(Some(1))).method("PUT").times(2)]);
    let began = Instant::now();
    troubled.put("object", b"x").unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2), "it was asked again too soon");
    assert_eq!(troubled.proxy.struck(), 2);
}

#[test]
fn a_throttled_part_is_sent_again_beyond_what_the_library_tries() {
    let Some(troubled) = Troubled::new(&[]) else { return };
    // The library gives up after four attempts.
    let slow = Trouble::new(What::SlowDown(None)).method("PUT").target("partNumber=2");
    let cut = Trouble::new(What::CutRequest).method("PUT").target("partNumber=1");
    let lost = Trouble::new(What::LoseReply).method("POST").target("uploadId=").times(1);
    troubled.proxy.set(vec![slow.times(6), cut.times(3), lost]);
    let bytes: Vec<u8> = (0..2 * PART + 5).map(|i| (i / 3) as u8).collect();
    let log = logged(|| {
        block_on(async {
            let at = Path::from("runs/object");
            let upload = troubled.store.patient().put_multipart(&at).await.unwrap();
            let mut writer = WriteMultipart::new_with_chunk_size(upload, PART);
            writer.write(&bytes);
            writer.finish().await.unwrap();
        });
    });
    assert!(troubled.there("object") == bytes);
    assert_eq!(troubled.proxy.struck(), 10);
    assert!(!log.contains(troubled.bucket.secret()), "{log}");
}

#[test]
fn a_body_that_breaks_off_again_and_again_arrives_whole() {
    let Some(troubled) = Troubled::new(&[]) else { return };
    let bytes: Vec<u8> = (0..3 << 20).map(|i| (i / 5) as u8).collect();
    troubled.put("object", &bytes).unwrap();
    troubled.proxy.set(vec![Trouble::new(What::CutResponse).method("GET").times(7)]);
    let read = async {
        let result = troubled.store.patient().get(&Path::from("runs/object")).await?;
        result.into_stream().try_collect::<Vec<_>>().await
    };
    assert!(block_on(read).unwrap().concat() == bytes);
    assert_eq!(troubled.proxy.struck(), 7);
}

#[test]
fn what_waiting_cannot_cure_is_not_waited_for() {
    let Some(troubled) = Troubled::new(&[(PATIENCE, "3600")]) else { return };
    for (status, code, kind, said) in [
        (507, "InsufficientStorage", Kind::Full, "is full (InsufficientStorage"),
        (403, "QuotaExceeded", Kind::Full, "free space or raise the quota"),
        (403, "AccessDenied", Kind::NoPermission, "allow them to list the bucket"),
        (403, "ExpiredToken", Kind::WrongCredentials, "check AWS_ACCESS_KEY_ID"),
        (403, "RequestTimeTooSkewed", Kind::WrongCredentials, "set this machine's clock"),
        (404, "NoSuchBucket", Kind::NoBucket, "create it, or correct the URL"),
        (400, "InvalidRequest", Kind::Refused, "refuses the request (InvalidRequest"),
        (501, "NotImplemented", Kind::Unsupported, "cannot do it"),
    ] {
        troubled.proxy.set(vec![Trouble::new(What::Refuse(status, code))]);
        let error = Error::from(troubled.put("object", b"x").unwrap_err());
        let text = error.to_string();
        assert!(error.kind == kind && kind.is_lasting(), "{kind:?}: {error:?}");
        assert!(text.contains(said) && text.contains(&troubled.bucket.name), "{text}");
    }
}

#[test]
fn what_lasts_longer_than_patience_is_an_error_that_says_what_it_was() {
    // The stall is longer than a server takes to answer on a busy machine.
    let short = [(PATIENCE, "0.3"), (STALL, "3")];
    let Some(troubled) = Troubled::new(&short) else { return };
    assert!(eventually(LIMIT, || troubled.put("object", b"x").is_ok()));
    for (what, kind, said) in [
        (What::SlowDown(None), Kind::Throttled, "asks to slow down (SlowDown"),
        (What::Refuse(500, "InternalError"), Kind::Failed, "failed (InternalError"),
        (What::BlackHole(Duration::from_secs(60)), Kind::Stalled, "did not answer in time"),
        (What::CutResponse, Kind::Cut, "broke off"),
    ] {
        troubled.proxy.set(vec![Trouble::new(what.clone())]);
        let error = Error::from(troubled.put("object", b"y").unwrap_err());
        assert!(error.kind == kind && !kind.is_lasting(), "{what:?}: {error:?}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn a_store_that_is_away_is_said_once_and_so_is_its_return() {
    let Some(troubled) = Troubled::new(&[]) else { return };
    troubled.put("object", b"x").unwrap();
    troubled.proxy.set(vec![Trouble::new(What::GoAway(Duration::from_secs(2))).times(1)]);
    let log = logged(|| troubled.put("object", b"y").unwrap());
    assert_eq!(log.matches("the store is in trouble; trying again for up to 120 s").count(), 1);
    assert_eq!(log.matches("the store answers again").count(), 1, "{log}");
    assert_eq!(troubled.there("object"), b"y");
}

#[test]
fn bytes_that_change_on_their_way_into_the_store_are_refused_and_sent_again() {
    // moto compares no checksums.
    let troubled = s3::strict_server().and_then(|_| Troubled::new(&[]));
    let Some(troubled) = troubled else { return };
    troubled.proxy.set(vec![Trouble::new(What::CorruptRequest).method("PUT").times(1)]);
    troubled.put("object", b"exactly this").unwrap();
    assert_eq!(troubled.proxy.struck(), 1);
    assert_eq!(troubled.there("object"), b"exactly this");
}

#[test]
fn a_full_disk_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let mount = |words: &[&str]| {
        let done =
            std::process::Command::new(words[0]).args(&words[1..]).arg(folder.path()).output();
        done.is_ok_and(|output| output.status.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=64k", "none"]) {
        skips::skip("mount", "a file system of 64 KiB cannot be mounted (needs root)");
        return;
    }
    let store = super::open(folder.path().to_str().unwrap()).unwrap();
    let at = Path::from_absolute_path(folder.path().join("object")).unwrap();
    let written = block_on(store.patient().put(&at, vec![0; 1 << 20].into()));
    assert!(mount(&["umount"]));
    let error = Error::from(written.unwrap_err());
    assert_eq!(error.kind, Kind::Full, "{error:?}");
    assert!(error.to_string().ends_with("free space or raise the quota"), "{error}");
}

#[test]
fn a_store_that_ignores_conditions_is_found_out_and_what_it_means_is_said() {
    use super::conditional;
    use object_store::memory::InMemory;
    use ringmaster_tests::faulty_store::Faulty;
    use std::sync::Arc;
    for (honest, create, update) in [(true, true, true), (false, false, false)] {
        let store: Arc<dyn ObjectStore> = Arc::new(Faulty::new(Arc::new(InMemory::new()), honest));
        let mut opened = Store::of(Arc::clone(&store));
        opened.path = Path::from("job");
        let log = logged(|| {
            let found = block_on(async {
                let found = opened.conditional(&opened.path).await.unwrap();
                assert_eq!(opened.conditional(&opened.path).await.unwrap(), found);
                found
            });
            assert_eq!((found.create, found.update.is_some()), (create, update));
        });
        assert_eq!(log.contains("left to the coordinator alone"), !honest, "{log}");
        let left = block_on(store.list(None).try_collect::<Vec<_>>()).unwrap();
        assert!(left.is_empty(), "the object that tried the store is removed: {left:?}");
    }
    // Ceph wants the version without its quotes, and says so by refusing it with them.
    let Some(server) = s3::server_for_part() else { return };
    let bucket = server.bucket();
    let found = block_on(conditional::probe(&bucket.store(), &Path::from("job"))).unwrap();
    if s3::strict_server_for_part().is_some() {
        let unquoted = Some(conditional::Tag::Unquoted);
        assert_eq!(found, conditional::Conditional { create: true, update: unquoted });
    }
    assert!(bucket.list("job").is_empty());
}
