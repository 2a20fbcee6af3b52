//! Names of any kind: what is written lies at exactly that path, and is found there again.

use std::path::Path as FsPath;

use proptest::prelude::*;
use ringmaster_store as store;
use url::Url;

use super::*;
use crate::tests::testing;
use crate::{Listing, job_url, url_below};

/// Characters that paths, URLs and the store's library treat specially, and a few that they do not.
const CHARACTERS: [char; 40] = [
    '~', '%', '#', '?', ' ', '[', ']', '{', '}', '(', ')', '&', '=', '+', ';', ':', ',', '@', '!',
    '$', '\'', '"', '\\', '*', '|', '<', '>', '^', '`', '.', '-', '_', 'a', 'B', '0', '7', 'ä',
    'ß', 'é', '日',
];

fn name() -> impl Strategy<Value = String> {
    let characters = prop::collection::vec(prop::sample::select(CHARACTERS.to_vec()), 1..12);
    characters
        .prop_map(String::from_iter)
        .prop_filter("a step of a path", |name| !matches!(name.as_str(), "." | ".."))
}

/// Names of everything in a folder.
fn names(folder: &FsPath) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn run<T>(work: impl Future<Output = Result<T, Error>>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work).unwrap_or_else(|error| panic!("{error}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_exported_or_copied_lies_where_it_was_named(name in name()) {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("source").display().to_string();
        testing::publish(&source, 1, 10);
        let from = job_url(&source, testing::JOB_ID);
        let Target::Job(job) = run(Target::open(&from)) else { panic!("no job") };
        let checkpoint = run(job.newest()).unwrap();

        let out = root.path().join("out").join(&name);
        std::fs::create_dir_all(&out).unwrap();
        let file = out.join(format!("{name}.safetensors"));
        let as_url = Url::from_file_path(&file).unwrap();
        for (url, overwrite) in [(file.to_str().unwrap(), false), (as_url.as_str(), true)] {
            run(checkpoint.export(url, overwrite, &Meter::default()));
            prop_assert_eq!(names(&out), vec![format!("{}.safetensors", name)], "{}", url);
        }
        let listing = run(Listing::read(out.to_str().unwrap()));
        prop_assert_eq!(listing.files, vec![format!("{}.safetensors", name)]);

        let jobs = root.path().join("jobs");
        for folder in [jobs.display().to_string(), Url::from_file_path(&jobs).unwrap().to_string()] {
            let url = url_below(&folder, &name);
            let destination = run(Destination::open(&url));
            run(checkpoint.copy_to(&destination, &Meter::default()));
            prop_assert_eq!(names(&jobs), vec![name.clone()]);
            let Target::Jobs(found) = run(Target::open(&folder)) else { panic!("no jobs") };
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!((found[0].name(), found[0].url()), (name.as_str(), url.as_str()));
            let newest = run(found[0].newest()).unwrap();
            prop_assert_eq!(newest.url(), format!("{url}/step-0000000010.g1.1"));
            prop_assert_eq!(run(newest.verify(&Meter::default())), vec![]);
            let chosen = crate::choose(&[&newest.url()]).unwrap().unwrap();
            prop_assert_eq!(chosen.url(), newest.url());
            std::fs::remove_dir_all(&jobs).unwrap();
        }
    }

    #[test]
    fn a_key_in_a_bucket_is_the_name_itself(name in name()) {
        for bucket in ["memory://names", "memory://names/runs"] {
            let url = url_below(bucket, &name);
            let path = store::open(&url).unwrap().path;
            prop_assert_eq!(path.filename().unwrap(), name.as_str(), "{}", url);
            let parsed = Url::parse(&url_below("s3://bucket/runs", &name)).unwrap();
            let (_, key) = object_store::ObjectStoreScheme::parse(&parsed).unwrap();
            prop_assert_eq!(key.as_ref(), format!("runs/{name}"));
        }
    }
}

#[test]
fn what_would_cut_a_url_short_is_refused_with_how_to_write_it() {
    for (url, reason) in [
        ("file:///runs/a#1", "write %3F and %23 for them, or the path without file://"),
        ("file:///runs/what?", "write %3F and %23 for them, or the path without file://"),
        ("s3://bucket/runs#1", "# ends the path of a URL; write %23 for it"),
        ("memory://names/a?b", "a ? that belongs to a name is written %3F"),
    ] {
        let text = store::open(url).unwrap_err().to_string();
        assert!(text.contains(reason), "{text}");
    }
    assert!(store::open("/runs/a#1?b").is_ok());
}
