//! Folders of images and captions.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ringmaster_tests::logged::logged;
use sha2::{Digest as _, Sha256};

use super::told::Told;
use super::*;
use crate::source::folder::Options;

fn options(url: &str) -> Options {
    Options {
        urls: vec![url.to_owned()],
        image_key: vec!["jpg".into(), "png".into()],
        text_key: "txt".into(),
        json_text_key: None,
        csv_caption_key: "title".into(),
    }
}

fn open(folder: &Path) -> Result<Source, Error> {
    Source::of_folders(options(&folder.display().to_string()), 128)
}

/// Writes files, of which the images hold their own names.
fn write(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, if text.is_empty() { name } else { text }).unwrap();
    }
    folder
}

/// Returns the names and captions of all samples.
fn samples(source: &Source) -> Vec<(String, String)> {
    (0..source.len())
        .map(|index| {
            let sample = read(source, index).unwrap();
            let name = String::from_utf8(sample.image.to_vec()).unwrap();
            assert!(sample.key.ends_with(&name), "{} {name}", sample.key);
            (name, sample.captions.join("|"))
        })
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn images_and_captions_of_one_name_are_samples_in_the_order_of_names() {
    let folder = write(&[
        ("b/2.png", ""),
        ("b/2.txt", " two\n"),
        ("a.JPG", ""),
        ("a.TXT", "upper case"),
        ("c.d.png", ""),
        ("c.d.jpg", ""),
        ("c.d.txt", "jpg goes first"),
        ("e#%?.png", ""),
        ("e#%?.txt", "odd"),
        ("without.png", ""),
        ("alone.txt", "x"),
        (".hidden.png", ""),
        (".hidden.txt", "x"),
        (".cache/1.png", ""),
        (".cache/1.txt", "x"),
        ("notes.md", "x"),
    ]);
    let mut source = None;
    let log = logged(|| source = Some(open(folder.path()).unwrap()));
    let source = source.unwrap();
    let expected = [
        ("a.JPG", "upper case"),
        ("b/2.png", "two"),
        ("c.d.jpg", "jpg goes first"),
        ("e#%?.png", "odd"),
    ];
    assert_eq!(samples(&source), pairs(&expected));
    assert_eq!(source.bytes(), expected.iter().map(|(name, _)| name.len() as u64).sum::<u64>());
    assert_eq!(log.matches("images without a caption are left out").count(), 1, "{log}");
    assert!(log.contains("left_out=1") && log.contains("without.png"), "{log}");
    // A path that ends in a slash, and a URL, are the same folder.
    for url in [
        format!("{}/", folder.path().display()),
        url::Url::from_directory_path(folder.path()).unwrap().to_string(),
    ] {
        let again = Source::of_folders(options(&url), 128).unwrap();
        assert_eq!(samples(&again), pairs(&expected), "{url}");
    }
}

#[test]
fn captions_come_from_json_where_its_field_is_named() {
    let folder = write(&[
        ("a.png", ""),
        ("a.json", r#"{"captions": ["one", "two"]}"#),
        ("a.txt", "not this"),
        ("b.png", ""),
        ("b.json", r#"{"other": 1}"#),
    ]);
    let options = Options {
        json_text_key: Some("captions".into()),
        ..options(&folder.path().display().to_string())
    };
    let source = Source::of_folders(options, 128).unwrap();
    assert_eq!(read(&source, 0).unwrap().captions, ["one", "two"]);
    let error = read(&source, 1).unwrap_err();
    assert!(matches!(error, SampleError::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("sample b.png: "), "{error}");
}

#[test]
fn captions_come_from_metadata_as_hugging_face_has_it() {
    let images = [("train/1.png", ""), ("2.jpg", ""), ("3.png", ""), ("3.txt", "of a file")];
    for (name, text) in [
        (
            "metadata.csv",
            "text,file_name\r\n\"a \"\"quoted\"\"\r\ncaption\",train/1.png\r\nlast,2.jpg\r\nx,gone.png",
        ),
        (
            "metadata.jsonl",
            "{\"file_name\": \"2.jpg\", \"text\": \"last\"}\n\nno json\n{\"text\": \"no name\"}\n\
             {\"file_name\": \"train/1.png\", \"text\": \"a \\\"quoted\\\"\\r\\ncaption\"}",
        ),
    ] {
        let folder = write(&[&images[..], &[(name, text)]].concat());
        let expected =
            [("2.jpg", "last"), ("3.png", "of a file"), ("train/1.png", "a \"quoted\"\r\ncaption")];
        assert_eq!(samples(&open(folder.path()).unwrap()), pairs(&expected), "{name}");
        // Behind a network, too.
        let store = format!("folder-{}", name.replace('.', "-"));
        let told = Told::register(&store);
        for (name, bytes) in [&images[..], &[(name, text)]].concat() {
            let bytes = if bytes.is_empty() { name } else { bytes };
            told.add(&format!("x/{name}"), bytes.into());
        }
        let source = Source::of_folders(options(&format!("memory://{store}/x/")), 128).unwrap();
        assert!(source.is_remote());
        assert_eq!(samples(&source), pairs(&expected), "{name} behind a network");
    }
    // The manifest's column goes first where it is there.
    let folder =
        write(&[("1.png", ""), ("metadata.csv", "file_name,text,title\n1.png,wrong,right\n")]);
    assert_eq!(samples(&open(folder.path()).unwrap()), pairs(&[("1.png", "right")]));
}

#[test]
fn a_whole_bucket_is_a_folder() {
    let told = Told::register("whole-bucket");
    told.add("a/1.png", b"a/1.png".to_vec());
    told.add("a/1.txt", b"one".to_vec());
    for url in ["memory://whole-bucket", "memory://whole-bucket/"] {
        let source = Source::of_folders(options(url), 128).unwrap();
        assert_eq!(samples(&source), pairs(&[("a/1.png", "one")]), "{url}");
    }
}

#[test]
fn a_folder_without_samples_says_what_was_looked_for() {
    let image = ("1.png", "");
    for (files, expected) in [
        (&[][..], "there is no such folder, or no file below it"),
        (
            &[("1.webp", "")],
            "none of the 1 files below it is an image (.jpg, .png); set data.image_key",
        ),
        (
            &[image],
            "none of its 1 images (.jpg, .png) has a caption: no file of an image's name ends in .txt",
        ),
        (&[image], "there is no metadata.csv or metadata.jsonl"),
        (
            &[image, ("metadata.csv", "file_name,label\n1.png,3\n")],
            "it has \"file_name\", \"label\"",
        ),
        (&[image, ("metadata.csv", "\n")], "metadata.csv is an empty file"),
        (&[image, ("metadata.jsonl", "[]\n3\n{}")], "the metadata there names none of them"),
    ] {
        let folder = write(files);
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(" holds no sample: ") && error.contains(expected), "{error}");
    }
    let error = open(Path::new("/nowhere/at/all")).unwrap_err().to_string();
    assert!(error.contains("there is no such folder"), "{error}");
}

#[test]
fn a_file_that_is_gone_or_changed_is_noticed() {
    let folder = write(&[("1.png", ""), ("1.txt", "x"), ("2.png", ""), ("2.txt", "y")]);
    let source = open(folder.path()).unwrap();
    let known = fingerprint(&source);
    std::fs::remove_file(folder.path().join("1.png")).unwrap();
    let error = read(&source, 0).unwrap_err();
    assert!(matches!(error, SampleError::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("sample 1.png: image: it does not exist"), "{error}");
    std::fs::remove_file(folder.path().join("2.txt")).unwrap();
    let error = read(&source, 1).unwrap_err().to_string();
    assert!(error.contains("sample 2.png: caption 2.txt: it does not exist"), "{error}");
    std::fs::write(folder.path().join("1.png"), "longer than before").unwrap();
    std::fs::write(folder.path().join("2.txt"), "y").unwrap();
    assert_ne!(fingerprint(&open(folder.path()).unwrap()), known);
}

fn fingerprint(source: &Source) -> String {
    let mut digest = Sha256::new();
    source.add_to(&mut digest);
    hex::encode(digest.finalize())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_set_of_files_gives_each_image_with_a_caption_once(
        names in prop::collection::btree_set("[a-c]{1,2}(/[a-c-]{1,2})?\\.(png|jpg|txt|b\\.txt)", 1..25),
    ) {
        let mut expected = BTreeMap::new();
        for (extension, text) in [("png", "txt"), ("jpg", "txt")] {
            for name in &names {
                let Some(stem) = name.strip_suffix(&format!(".{extension}")) else { continue };
                if names.contains(&format!("{stem}.{text}")) {
                    expected.insert(stem.to_owned(), (name.clone(), format!("{stem}.{text}")));
                }
            }
        }
        let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
        let folder = write(&files);
        let mut opened = None;
        let log = logged(|| opened = Some(open(folder.path())));
        let image = |name: &String| name.ends_with("png") || name.ends_with("jpg");
        let stems: std::collections::BTreeSet<_> =
            names.iter().filter(|name| image(name)).map(|name| &name[..name.len() - 4]).collect();
        match opened.unwrap() {
            Ok(source) => {
                prop_assert_eq!(log.contains("are left out"), stems.len() > expected.len());
                prop_assert_eq!(samples(&source), expected.into_values().collect::<Vec<_>>());
            }
            Err(error) => prop_assert!(expected.is_empty(), "{}", error),
        }
    }
}
