//! Tables whose rows name images.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ringmaster_tests::web::{Health, WebServer};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::told::Told;
use super::*;
use crate::source::csv::{Csv, Options};

fn options(url: &str) -> Options {
    Options {
        urls: vec![url.to_owned()],
        separator: b'\t',
        img_key: "filepath".into(),
        caption_key: "title".into(),
    }
}

/// Writes a table beside which its images are, and returns its path.
fn write_table(folder: &Path, rows: usize, image: impl Fn(usize) -> String) -> String {
    let mut text = "filepath\ttitle\n".to_owned();
    for row in 0..rows {
        text.push_str(&format!("{}\tcaption {row}\n", image(row)));
    }
    write(folder, "t.tsv", text.as_bytes())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

fn open(url: &str) -> Result<Source, Error> {
    Source::of_tables(options(url), 128)
}

fn open_impatient(url: &str, patience: Duration) -> Result<Source, Error> {
    Ok(Source::new(Box::new(Csv::open_patient(options(url), patience)?), 128))
}

fn fingerprint(source: &Source) -> String {
    let mut digest = Sha256::new();
    source.add_to(&mut digest);
    hex::encode(digest.finalize())
}

#[test]
fn every_row_is_a_sample_wherever_a_block_begins() {
    let folder = tempfile::tempdir().unwrap();
    for row in 0..300 {
        write(folder.path(), &format!("{row}.png"), &png(row as u8));
    }
    let url = write_table(folder.path(), 300, |row| format!("{row}.png"));
    let mut sources = Vec::new();
    for block in [1, 7, 64, 100, 128, 1000] {
        let source = Source::of_tables(options(&url), block).unwrap();
        assert_eq!(source.shard_sizes(), [300]);
        let cancel = CancellationToken::new();
        let mut index = 0;
        while index < source.len() {
            let (shard, number) = source.block_of(index);
            let block = source.fetch(shard, number, &cancel).unwrap();
            assert_eq!(block.first, index);
            for sample in &block.samples {
                let sample = sample.as_ref().unwrap();
                assert_eq!(sample.captions, [format!("caption {index}")]);
                assert_eq!(sample.image, png(index as u8));
                assert!(sample.key.starts_with(&format!("t.tsv/line {} (", index + 2)));
                index += 1;
            }
        }
        sources.push(source);
    }
    assert_eq!(read(&sources[0], 299).unwrap().captions, ["caption 299"]);
    let about = sources[0].bytes() as f64 / 300.0;
    assert!((about / png(0).len() as f64 - 1.0).abs() < 0.2, "{about} bytes an image");
    assert!(!sources[0].is_remote());
    // Rows, keys and separator make a data set; where the file is does not.
    let known = fingerprint(&sources[0]);
    let other = tempfile::tempdir().unwrap();
    let copy = other.path().join("t.tsv");
    std::fs::copy(&url, &copy).unwrap();
    assert_eq!(fingerprint(&open(&copy.display().to_string()).unwrap()), known);
    let fewer = write_table(other.path(), 299, |row| format!("{row}.png"));
    assert_ne!(fingerprint(&open(&fewer).unwrap()), known);
}

#[test]
fn what_is_wrong_with_a_row_is_said_with_its_line_and_its_neighbours_are_read() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.png", &png(1));
    let text = b"filepath\ttitle\na.png\tfine\na.png\na.png\tx\ty\n\tno image\na.png\t  \nnot.png\tgone\n\
        a.png\t\xff\xfe\nhttp://:x\tnowhere\nftp://host/a.png\tno store\na.png/b.png\tin a file\na.png\tlast\n";
    let source = open(&write(folder.path(), "t.tsv", text)).unwrap();
    assert_eq!(source.len(), 11);
    assert_eq!(read(&source, 0).unwrap().captions, ["fine"]);
    assert_eq!(read(&source, 10).unwrap().captions, ["last"]);
    for (index, expected) in [
        (1, "t.tsv, sample on line 3: the row has 1 fields and the table 2 columns"),
        (2, "on line 4: the row has 3 fields"),
        (3, "on line 5: no image: its field is empty"),
        (4, "on line 6: no caption: its field is empty"),
        (5, "/not.png: it does not exist"),
        (6, "on line 8: caption: invalid utf-8"),
        (7, "on line 9: image http://:x: "),
        (8, "on line 10: image ftp://host/a.png: there is no store for ftp://"),
        (9, "on line 11: image "),
    ] {
        let error = read(&source, index).unwrap_err();
        assert!(matches!(&error, SampleError::Corrupt(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn images_are_found_beside_the_table_by_path_and_by_url() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("im ages")).unwrap();
    let name = "im ages/50% #1?.png";
    let path = write(folder.path(), name, &png(7));
    let url = url::Url::from_file_path(&path).unwrap();
    let names = [name.to_owned(), format!("./x/../{name}"), path.clone(), url.to_string()];
    let table = write_table(folder.path(), names.len(), |row| names[row].clone());
    let table_url = url::Url::from_file_path(&table).unwrap().to_string();
    for table in [table, table_url] {
        let source = open(&table).unwrap();
        for index in 0..source.len() {
            assert_eq!(
                read(&source, index).unwrap().image,
                png(7),
                "{table} {}",
                names[index as usize]
            );
        }
    }
}

#[test]
fn a_table_without_what_was_asked_for_says_what_to_change() {
    let folder = tempfile::tempdir().unwrap();
    for (text, expected) in [
        (&b""[..], "t.tsv holds no sample: an empty file"),
        (b"\n\n", "holds no sample: an empty file"),
        (b"filepath\ttitle\n", "holds no sample: a table without rows"),
        (
            b"path\ttitle\na.png\tx\n",
            "t.tsv has no column \"filepath\", only \"path\", \"title\"; set data.csv_img_key to",
        ),
        (
            b"filepath\ttext\na.png\tx\n",
            "no column \"title\", only \"filepath\", \"text\"; set data.csv_caption_key",
        ),
        (b"filepath,title\na.png,x\n", "seem to be separated by ',': set data.csv_separator"),
        (b"\x89PNG\r\n\x1a\n\0\0", "it is a PNG image"),
        (b"<!DOCTYPE html>\n<html>", "it is an HTML page"),
    ] {
        let error = open(&write(folder.path(), "t.tsv", text)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
    let error = open(&folder.path().join("no.tsv").display().to_string()).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
}

#[test]
fn a_table_that_changes_after_it_was_opened_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.png", &png(1));
    let url = write_table(folder.path(), 3, |_| "a.png".to_owned());
    let source = open(&url).unwrap();
    write_table(folder.path(), 4, |_| "a.png".to_owned());
    for index in 0..3 {
        let error = read(&source, index).unwrap_err();
        let changed =
            matches!(&error, SampleError::Store(Error::Replaced { url }) if url.ends_with("t.tsv"));
        assert!(changed, "{error:?}");
    }
}

#[test]
fn tables_and_images_are_read_from_the_web_and_a_missing_image_is_a_flaw() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["0.png", "1.png", "3.png"] {
        write(folder.path(), name, &png(name.as_bytes()[0]));
    }
    write_table(folder.path(), 4, |row| format!("{row}.png"));
    let web = WebServer::start(folder.path());
    let source = open(&web.url("t.tsv")).unwrap();
    assert!(source.is_remote());
    for (index, is_there) in [(0, true), (1, true), (2, false), (3, true)] {
        match read(&source, index) {
            Ok(sample) => assert!(is_there && sample.image == png(b'0' + index as u8)),
            Err(SampleError::Corrupt(flaw)) => {
                assert!(!is_there, "{flaw}");
                let expected = format!("image {}: it does not exist", web.url("2.png"));
                assert!(flaw.reason.starts_with(&expected), "{flaw}");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn a_web_server_that_stays_away_is_an_error_and_no_flaw() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "0.png", &png(0));
    let web = WebServer::start(folder.path());
    let table = write_table(folder.path(), 3, |_| web.url("0.png"));
    let source = open_impatient(&table, Duration::from_millis(300)).unwrap();
    assert!(source.is_remote());
    web.set(Health::Refuses);
    let error = read(&source, 1).unwrap_err();
    let away =
        matches!(&error, SampleError::Store(Error::Store { url, .. }) if *url == web.url("0.png"));
    assert!(away, "{error:?}");
    web.set(Health::Serves);
    assert_eq!(read(&source, 1).unwrap().image, png(0));
}

/// Answers every request on a port of its own alike, until the process ends; returns the URL of an image there.
fn answering(reply: String) -> String {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let lines = BufReader::new(&connection).lines();
            let head = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
            if head.count() > 0 {
                drop(connection.write_all(reply.as_bytes()));
            }
        }
    });
    format!("http://{address}/0.png")
}

#[test]
fn what_a_web_server_refuses_is_a_flaw_and_what_it_fails_at_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let end = "Content-Length: 0\r\nConnection: close\r\n\r\n";
    for (head, expected) in [
        ("401 Unauthorized", Some("status 401")),
        ("403 Forbidden", Some("status 403")),
        ("404 Not Found", Some("it does not exist")),
        ("410 Gone", Some("status 410")),
        ("451 Unavailable For Legal Reasons", Some("status 451")),
        ("500 Internal Server Error", None),
        ("503 Service Unavailable", None),
        // It does not say how long the image is.
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", Some("cannot do it")),
    ] {
        let image = answering(format!("HTTP/1.1 {head}\r\n{end}"));
        let url = write_table(folder.path(), 1, |_| image.clone());
        let opened = open_impatient(&url, Duration::from_millis(200));
        match (opened.map(|source| read(&source, 0)), expected) {
            (Ok(Err(SampleError::Corrupt(flaw))), Some(expected)) => {
                assert!(flaw.reason.contains(expected), "{head}: {flaw}");
            }
            // The images that are tried at the start show it already.
            (Err(Error::Store { url, .. }), None) => assert_eq!(url, image),
            (other, _) => panic!("{head}: {other:?}"),
        }
    }
}

#[test]
fn a_store_that_fails_for_a_moment_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let told = Told::register("fails-for-a-moment");
    told.add("0.png", png(0));
    let table = write_table(folder.path(), 2, |_| "memory://fails-for-a-moment/0.png".to_owned());
    let source = open(&table).unwrap();
    let before = told.asked.load(Ordering::SeqCst);
    told.failures.store(3, Ordering::SeqCst);
    assert_eq!(read(&source, 0).unwrap().image, png(0));
    assert_eq!(told.asked.load(Ordering::SeqCst) - before, 4);
}

/// One request after another would wait for the network as often as a block has samples.
#[test]
fn images_of_a_block_are_asked_for_sixty_four_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let told = Told::register("many-at-once");
    for row in 0..128 {
        told.add(&format!("{row}.png"), png(row));
    }
    let table = write_table(folder.path(), 128, |row| format!("memory://many-at-once/{row}.png"));
    let source = open(&table).unwrap();
    let before = told.asked.load(Ordering::SeqCst);
    told.answers_after.store(before + 64, Ordering::SeqCst);
    let block = source.fetch(0, 0, &CancellationToken::new()).unwrap();
    for (row, sample) in block.samples.iter().enumerate() {
        assert_eq!(sample.as_ref().unwrap().image, png(row as u8), "in the order of the rows");
    }
    assert_eq!(told.asked.load(Ordering::SeqCst) - before, 128);
}

#[test]
fn an_object_that_is_far_too_long_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let long = std::fs::File::create(folder.path().join("0.png")).unwrap();
    long.set_len(300 << 20).unwrap();
    let source = open(&write_table(folder.path(), 1, |_| "0.png".to_owned())).unwrap();
    let error = read(&source, 0).unwrap_err().to_string();
    assert!(error.contains("0.png: it has 314572800 bytes, more than the 268435456"), "{error}");
}

#[test]
fn a_manifests_names_say_which_form_a_source_has() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).display().to_string();
    for number in 0..3 {
        std::fs::write(place(&format!("{number}.png")), png(number)).unwrap();
        std::fs::write(place(&format!("{number}.txt")), format!("file {number}")).unwrap();
    }
    std::fs::write(place("rows.csv"), "filepath\ttitle\n0.png\trow zero\n2.png\trow two\n")
        .unwrap();
    let shards = write_shards(folder.path(), 1, 4, keep);
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parquet/datasets.parquet");
    let images = vec![format!("{}/", folder.path().display())];
    let sources = [vec![place("rows.csv")], images, shards, vec![table.display().to_string()]];
    let sources = sources.into_iter().enumerate().map(|(number, names)| spec::Source {
        name: format!("s{number}"),
        ..spec::Source::train(names)
    });
    let mut data = data(sources.collect());
    data.parquet_caption_key.push("text".to_owned());
    let dataset = Dataset::open(&data, 8).unwrap();
    let captions = |source: u32, index: u64| {
        dataset.read(source, index, &CancellationToken::new()).unwrap().captions.concat()
    };
    assert_eq!((captions(0, 1), captions(1, 1)), ("row two".to_owned(), "file 1".to_owned()));
    assert_eq!(captions(2, 3), "caption 0 3");
    assert!(!captions(3, 0).is_empty());
}
