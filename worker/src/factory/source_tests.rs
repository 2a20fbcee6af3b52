use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use ringmaster_store as store;
use ringmaster_weights::Weights;

use super::*;

const NAME: &str = "model.safetensors.index.json";

/// Puts objects into a store in this process's memory.
fn put(bucket: &str, objects: &[(&str, &[u8])]) {
    let store = store::open(bucket).unwrap().objects();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (name, bytes) in objects {
        let path = object_store::path::Path::parse(name).unwrap();
        runtime.block_on(store.put(&path, Bytes::copy_from_slice(bytes).into())).unwrap();
    }
}

/// A safetensors file of one number.
fn part(name: &str, value: f32) -> Vec<u8> {
    let header =
        format!("{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}}}");
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &value.to_le_bytes()].concat()
}

fn opened(found: &Pretrained) -> Weights {
    let Source::File(path) = &found.source else { panic!("{found:?}") };
    Weights::open(path).unwrap()
}

/// A folder in a bucket was taken for a run's, "holds no complete checkpoint", and of an index nothing
/// but itself was fetched.
#[test]
fn a_folder_or_an_index_in_a_store_gives_weights_in_parts() {
    let bucket = "memory://weights-in-parts";
    let index = r#"{"weight_map": {"a": "part 1#.safetensors", "b": "sub/part~2.safetensors"}}"#;
    let config = r#"{"model_cfg": {"quick_gelu": true}}"#;
    let name = |file: &str| format!("models/x/{file}");
    put(
        bucket,
        &[
            (&name(NAME), index.as_bytes()),
            (&name("part 1#.safetensors"), &part("a", 1.0)),
            (&name("sub/part~2.safetensors"), &part("b", 2.0)),
            (&name("open_clip_config.json"), config.as_bytes()),
        ],
    );
    let cache = tempfile::tempdir().unwrap();
    let folder = format!("{bucket}/models/x");
    let found = in_store(&folder, cache.path()).unwrap();
    let weights = opened(&found);
    let value = |weights: &Weights, name: &str| weights.get(name).unwrap().scalar();
    assert_eq!((value(&weights, "a"), value(&weights, "b")), (Some(1.0), Some(2.0)));
    assert_eq!(weights.path().file_name().unwrap(), NAME);

    let path = fetched(&format!("{folder}/{NAME}"), cache.path()).unwrap();
    assert_eq!(path, weights.path(), "it was there");
    // A part that changed is another version of the whole.
    put(bucket, &[(&name("sub/part~2.safetensors"), &part("b", 3.0))]);
    let changed = fetched(&format!("{folder}/{NAME}"), cache.path()).unwrap();
    assert_ne!(changed, path);
    assert_eq!(value(&Weights::open(&changed).unwrap(), "b"), Some(3.0));
}

#[test]
fn what_a_store_does_not_hold_is_named() {
    let bucket = "memory://weights-that-lack";
    let absent = r#"{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}"#;
    let evil = r#"{"weight_map": {"a": "../../secret"}}"#;
    put(
        bucket,
        &[
            ("absent/model.safetensors.index.json", absent.as_bytes()),
            ("absent/a.safetensors", &part("a", 1.0)),
            ("evil/model.safetensors.index.json", evil.as_bytes()),
            ("notes/README.md", b"notes"),
            ("run/step-0000000010.g1.1/state.json", b"{}"),
        ],
    );
    let cache = tempfile::tempdir().unwrap();
    let fail = |folder: &str| {
        let error = in_store(&format!("{bucket}/{folder}"), cache.path()).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error} {}", source.unwrap_or_default())
    };
    let text = fail("absent");
    assert!(text.contains("absent/b.safetensors") && text.contains("does not exist"), "{text}");
    let text = fail("evil");
    assert!(text.contains("expected a file beside the index"), "{text}");
    let text = fail("notes");
    assert!(text.contains("holds no weights: there is README.md; expected"), "{text}");
    let text = fail("run");
    assert!(text.contains("run holds no complete checkpoint"), "{text}");
    let text = fail("nothing");
    assert!(text.contains("holds neither checkpoints of a run nor files"), "{text}");
    let text = in_store("https://host/models/x", cache.path()).unwrap_err().to_string();
    assert!(text.contains("web servers list no folders; name the file itself"), "{text}");
}
