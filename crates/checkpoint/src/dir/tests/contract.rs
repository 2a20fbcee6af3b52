//! What every store has to keep, tried on each: files, memory, a real S3 server, and that one behind
//! a proxy that misbehaves.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use ringmaster_proto::v1::Generation;
use ringmaster_tests::s3;

use super::stores::{Subject, on_s3, subjects};
use crate::Error;
use crate::dir::CheckpointDir;
use crate::layout::StepName;
use crate::manifest::Pointer;

/// Smallest part of an upload that S3 takes, the last excepted.
const PART: usize = 5 << 20;

fn name(counter: u32, step: u64) -> StepName {
    StepName { generation: Generation::new(1, counter), step }
}

/// Runs an asynchronous test on every store.
fn on_each(test: impl AsyncFn(&'static str, &CheckpointDir)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for Subject { store, dir, .. } in &subjects() {
        runtime.block_on(test(store, dir));
    }
}

async fn latest(dir: &CheckpointDir) -> StepName {
    dir.latest().await.unwrap().unwrap().0.unwrap().name()
}

#[test]
fn what_is_created_once_stays_as_it_was() {
    on_each(async |store, dir| {
        let create = |text: &str| dir.create(name(1, 1), "MANIFEST.json", text.into());
        create("a").await.unwrap();
        create("a").await.unwrap();
        let error = create("b").await.unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{store}: {error}");
        let text = dir.text(name(1, 1), "MANIFEST.json").await.unwrap().unwrap();
        assert_eq!(text, b"a", "{store}");
    });
}

#[test]
fn of_sixteen_that_create_the_same_object_one_wins() {
    on_each(async |store, dir| {
        // Known before, so that all start at once.
        dir.create(name(1, 1), "first", b"x".to_vec()).await.unwrap();
        let attempts = (0..16_u8).map(|writer| {
            let dir = dir.clone();
            tokio::spawn(async move { dir.create(name(1, 1), "raced", vec![writer]).await })
        });
        let results = futures::future::join_all(attempts).await;
        let won: Vec<u8> = (0..16_u8)
            .zip(&results)
            .filter(|(_, result)| result.as_ref().unwrap().is_ok())
            .map(|(writer, _)| writer)
            .collect();
        assert_eq!(won.len(), 1, "{store}: {results:?}");
        assert_eq!(dir.text(name(1, 1), "raced").await.unwrap().unwrap(), won, "{store}");
    });
}

#[test]
fn latest_json_never_goes_back_whoever_writes_it() {
    on_each(async |store, dir| {
        dir.create(name(1, 20), "MANIFEST.json", b"x".to_vec()).await.unwrap();
        for (to, expected) in [
            (name(1, 20), name(1, 20)),
            (name(1, 10), name(1, 20)),
            (name(2, 10), name(2, 10)),
            (name(1, 90), name(2, 10)),
        ] {
            dir.advance_latest(&Pointer::to(to)).await.unwrap();
            assert_eq!(latest(dir).await, expected, "{store}");
        }
        let writers = (0..12_u64).map(|writer| {
            let dir = dir.clone();
            let to = name(3, (writer * 7) % 12);
            tokio::spawn(async move { dir.advance_latest(&Pointer::to(to)).await })
        });
        for result in futures::future::join_all(writers).await {
            result.unwrap().unwrap();
        }
        assert_eq!(latest(dir).await, name(3, 11), "{store}");
    });
}

#[test]
fn more_than_a_thousand_objects_are_listed_and_deleted() {
    on_each(async |store, dir| {
        let step = name(1, 5);
        let objects: Vec<String> = (0..1050).map(|i| format!("part-{i:04}")).collect();
        let puts = objects.iter().map(|object| {
            let at = dir.object(step, object);
            let store = &dir.store;
            async move { store.put(&at, PutPayload::from_static(b"x")).await }
        });
        futures::stream::iter(puts).buffer_unordered(32).try_collect::<Vec<_>>().await.unwrap();
        dir.create(name(1, 6), "other", b"x".to_vec()).await.unwrap();

        let folder = dir.base.clone().join(step.to_string());
        let listed: BTreeSet<String> = dir
            .store
            .list(Some(&folder))
            .map_ok(|object| object.location.filename().unwrap().to_owned())
            .try_collect()
            .await
            .unwrap();
        assert!(listed == objects.into_iter().collect(), "{store} lists {}", listed.len());
        assert_eq!(dir.survey().await.unwrap().names, [name(1, 6), step], "{store}");

        dir.delete_all(step).await.unwrap();
        dir.delete_all(step).await.unwrap();
        assert_eq!(dir.survey().await.unwrap().names, [name(1, 6)], "{store}");
        assert!(dir.exists(name(1, 6), "other").await.unwrap(), "{store}");
    });
}

#[test]
fn an_upload_of_several_parts_arrives_whole_and_is_invisible_before() {
    on_each(async |store, dir| {
        let step = name(1, 7);
        let bytes: Vec<u8> = (0..2 * PART + 17).map(|i| (i / 11) as u8).collect();
        let at = dir.object(step, "model.safetensors");
        let mut upload = dir.store.put_multipart(&at).await.unwrap();
        let parts: Vec<_> =
            bytes.chunks(PART).map(|part| upload.put_part(part.to_vec().into())).collect();
        futures::future::try_join_all(parts).await.unwrap();
        assert!(!dir.exists(step, "model.safetensors").await.unwrap(), "{store}");
        let result = upload.complete().await.unwrap();
        assert_ne!(result.e_tag.as_deref(), Some(""), "{store}: a version without a name");
        let back = dir.text(step, "model.safetensors").await.unwrap().unwrap();
        assert!(back == bytes, "{store}");
        let range = PART as u64 - 3..PART as u64 + 3;
        let middle = dir.store.get_range(&at, range.clone()).await.unwrap();
        assert_eq!(middle, bytes[PART - 3..PART + 3], "{store}");
    });
}

#[test]
fn an_empty_object_is_an_object() {
    on_each(async |store, dir| {
        let step = name(1, 8);
        let upload = dir.store.put_multipart(&dir.object(step, "parts")).await.unwrap();
        object_store::WriteMultipart::new(upload).finish().await.unwrap();
        dir.create(step, "whole", Vec::new()).await.unwrap();
        for object in ["parts", "whole"] {
            assert_eq!(dir.text(step, object).await.unwrap().unwrap(), b"", "{store}");
        }
    });
}

#[test]
fn names_with_spaces_and_other_alphabets_are_kept() {
    on_each(async |store, dir| {
        let step = name(1, 9);
        let objects = ["with space", "ünïcode-日本", "a+b&c=d", "100%25", "quote'\""];
        for object in objects {
            dir.create(step, object, object.into()).await.unwrap();
        }
        for object in objects {
            let text = dir.text(step, object).await.unwrap();
            assert_eq!(text.as_deref(), Some(object.as_bytes()), "{store}: {object}");
        }
        dir.delete(step, "with space").await.unwrap();
        dir.delete(step, "with space").await.unwrap();
        assert!(!dir.exists(step, "with space").await.unwrap(), "{store}");
        dir.delete_all(step).await.unwrap();
        assert!(dir.survey().await.unwrap().names.is_empty(), "{store}");
    });
}

#[test]
fn unfinished_uploads_of_older_checkpoints_are_ended_and_others_go_on() {
    // moto has no good answer to a part of an upload that was ended.
    let is_strict = s3::strict_server_for_part().is_some();
    on_each(async |store, dir| {
        let start = |step| async move {
            let at = dir.object(step, "model.safetensors");
            let mut upload = dir.store.put_multipart(&at).await.unwrap();
            upload.put_part(vec![7; PART].into()).await.unwrap();
            upload
        };
        let mut old = start(name(1, 10)).await;
        let mut own = start(name(2, 10)).await;
        dir.abort_unfinished_before(name(2, 10)).await;
        own.complete().await.unwrap();
        assert!(dir.exists(name(2, 10), "model.safetensors").await.unwrap(), "{store}");
        if store.starts_with("s3") && is_strict {
            let more = old.put_part(vec![7; PART].into()).await.unwrap_err();
            assert!(matches!(more, object_store::Error::NotFound { .. }), "{store}: {more:?}");
        }
        let mut late = start(name(2, 11)).await;
        dir.delete_all(name(2, 11)).await.unwrap();
        if store.starts_with("s3") && is_strict {
            let more = late.put_part(vec![7; PART].into()).await.unwrap_err();
            assert!(matches!(more, object_store::Error::NotFound { .. }), "{store}: {more:?}");
        }
        assert!(!dir.exists(name(2, 11), "model.safetensors").await.unwrap(), "{store}");
    });
}

#[test]
fn a_bucket_that_does_not_exist_is_named_and_is_not_an_empty_folder() {
    let Some(server) = s3::server() else { return };
    let bucket = s3::Bucket { name: "no-such-bucket".to_owned(), ..server.bucket() };
    let dir = on_s3(&bucket, "runs", &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(dir.survey()).unwrap_err();
    let text = ringmaster_words::chain(&error);
    assert!(text.starts_with("cannot list s3://no-such-bucket/runs: bucket"), "{text}");
    assert!(text.ends_with("create it, or correct the URL"), "{text}");
}
