//! What is found in the world's tars: read as OpenCLIP reads it, or told by its name.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use ringmaster_tests::logged::logged;
use tar::{EntryType, Header};

use super::*;

const FILE: EntryType = EntryType::Regular;

/// Returns header and bytes of a member; `change` may change the header.
fn member_with(
    name: &[u8],
    kind: EntryType,
    bytes: &[u8],
    change: impl FnOnce(&mut Header),
) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    change(&mut header);
    header.set_cksum();
    let mut member = header.as_bytes().to_vec();
    member.extend(bytes);
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

fn member(name: &str, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    member_with(name.as_bytes(), FILE, bytes.as_ref(), |_| ())
}

fn link(name: &str, kind: EntryType, target: &str) -> Vec<u8> {
    member_with(name.as_bytes(), kind, b"", |header| header.set_link_name(target).unwrap())
}

/// Image and caption of a sample whose image tells it.
fn sample(key: &str) -> Vec<u8> {
    [member(&format!("{key}.png"), format!("image {key}")), member(&format!("{key}.txt"), key)]
        .concat()
}

/// Returns a tar as GNU tar pads it.
fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = members.concat();
    archive.resize((archive.len() + 1024).next_multiple_of(10240), 0);
    archive
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A folder with one shard.
struct Shard {
    folder: tempfile::TempDir,
    url: String,
}

fn shard_named(name: &str, bytes: &[u8]) -> Shard {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Shard { folder, url: path.display().to_string() }
}

fn shard_of(members: &[Vec<u8>]) -> Shard {
    shard_named("0.tar", &archive(members))
}

impl Shard {
    fn open(&self) -> Source {
        open(vec![self.url.clone()]).unwrap()
    }

    fn refused(&self) -> String {
        open(vec![self.url.clone()]).unwrap_err().to_string()
    }

    /// Opens it as a manifest with other keys would.
    fn open_with(&self, change: impl FnOnce(&mut spec::Data)) -> Source {
        let mut data = data(vec![spec::Source::train(vec![self.url.clone()])]);
        change(&mut data);
        Source::open(&data, &data.sources[0]).unwrap()
    }

    /// Declares how many samples it holds.
    fn declare(&self, samples: u64) {
        let name = self.url.rsplit('/').next().unwrap();
        let sizes = serde_json::json!({ name: samples }).to_string();
        std::fs::write(self.folder.path().join("sizes.json"), sizes).unwrap();
    }
}

fn keys(source: &Source) -> Vec<String> {
    let key = |index| read(source, index).map_or_else(|e| e.to_string(), |sample| sample.key);
    (0..source.len()).map(key).collect()
}

fn image(source: &Source, index: u64) -> Vec<u8> {
    read(source, index).unwrap().image.to_vec()
}

/// Every sample was corrupt: a field that nobody reads held NaN.
#[test]
fn json_that_python_reads_holds_captions() {
    let jsons: [&[u8]; 4] = [
        b"{\"caption\": \"\", \"alt\": \"a\", \"width\": NaN}",
        b"\xef\xbb\xbf{\"caption\": \"b\"}",
        b"{\"caption\": \"c\", \"uid\": \"\\ud83d\"}",
        b"{\"width\": NaN, \"alt\": 3}",
    ];
    let members = jsons.iter().enumerate().map(|(number, json)| {
        [member(&format!("{number}.png"), "image"), member(&format!("{number}.json"), json)]
            .concat()
    });
    let shard = shard_of(&members.collect::<Vec<_>>());
    let source = shard.open_with(|data| data.json_text_key = Some("caption;alt".into()));
    let caption = |index| read(&source, index).unwrap().captions.join("|");
    assert_eq!([caption(0), caption(1), caption(2)], ["a", "b", "c"]);
    let error = read(&source, 3).unwrap_err().to_string();
    assert!(error.contains("field \"caption;alt\" holds no caption"), "{error}");
}

#[test]
fn contiguous_members_are_files() {
    let contiguous = member_with(b"a.png", EntryType::Continuous, b"image a", |_| ());
    let shard = shard_of(&[contiguous, member("a.txt", "a"), sample("b")]);
    let source = shard.open();
    assert_eq!((image(&source, 0), source.len()), (b"image a".to_vec(), 2));
}

/// An intact archive broke off at a member of `tar --sparse`: its size was taken for the bytes that are stored.
#[test]
fn sparse_members_are_read_with_their_holes() {
    let octal = |field: &mut [u8; 12], number: usize| {
        field[..11].copy_from_slice(format!("{number:011o}").as_bytes());
    };
    for parts in [0_usize, 2, 4, 5, 24, 60] {
        let stored: Vec<u8> = (0..parts * 512).map(|i| (i % 250 + 1) as u8).collect();
        let size = parts * 1024 + 7;
        let mut list: Vec<(usize, usize)> = (0..parts).map(|part| (part * 1024, 512)).collect();
        list.push((size, 0));
        let mut more: Vec<tar::GnuExtSparseHeader> = Vec::new();
        for rest in list.get(4..).unwrap_or_default().chunks(21) {
            let mut block = tar::GnuExtSparseHeader::new();
            for (part, (offset, len)) in block.sparse.iter_mut().zip(rest) {
                octal(&mut part.offset, *offset);
                octal(&mut part.numbytes, *len);
            }
            if let Some(before) = more.last_mut() {
                before.isextended[0] = 1;
            }
            more.push(block);
        }
        let header = member_with(b"a.png", EntryType::GNUSparse, b"", |header| {
            header.set_size(stored.len() as u64);
            let gnu = header.as_gnu_mut().unwrap();
            for (part, (offset, len)) in gnu.sparse.iter_mut().zip(&list) {
                octal(&mut part.offset, *offset);
                octal(&mut part.numbytes, *len);
            }
            octal(&mut gnu.realsize, size);
            gnu.isextended[0] = u8::from(!more.is_empty());
        });
        let more: Vec<u8> = more.iter().flat_map(|block| block.as_bytes().to_vec()).collect();
        let sparse = [header, more, stored.clone()].concat();
        let shard = shard_of(&[sparse, member("a.txt", "a"), sample("b")]);
        let source = shard.open();
        assert!(source.damaged().is_empty(), "{parts}: {:?}", source.damaged());
        let mut expected = vec![0; size];
        for part in 0..parts {
            let bytes = part * 512..part * 512 + 512;
            expected[part * 1024..part * 1024 + 512].copy_from_slice(&stored[bytes]);
        }
        assert!(image(&source, 0) == expected, "{parts}");
        assert_eq!(image(&source, 1), b"image b");
    }
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        // The length counts its own digits.
        let len = (1..).find(|digits| (rest.len() + digits).to_string().len() == *digits).unwrap();
        text.push_str(&format!("{}{rest}", rest.len() + len));
    }
    member_with(b"x", EntryType::XHeader, text.as_bytes(), |_| ())
}

#[test]
fn sparse_members_of_the_three_pax_formats_are_read_with_their_holes() {
    let expected = b"ab\0\0\0cd\0";
    let name = ("GNU.sparse.name", "a.png");
    let map = b"2\n0\n2\n5\n2\n".to_vec();
    let mut mapped = map.clone();
    mapped.resize(512, 0);
    mapped.extend(b"abcd");
    let oldest = [
        ("GNU.sparse.size", "8"),
        ("GNU.sparse.offset", "0"),
        ("GNU.sparse.numbytes", "2"),
        ("GNU.sparse.offset", "5"),
        ("GNU.sparse.numbytes", "2"),
    ];
    let newest =
        [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), name, ("GNU.sparse.realsize", "8")];
    for (records, stored) in [
        (&[name, ("GNU.sparse.map", "0,2,5,2"), ("GNU.sparse.size", "8")][..], &b"abcd"[..]),
        (&newest[..], &mapped[..]),
    ] {
        let stored = member("GNUSparseFile.1/a.png", stored);
        let shard = shard_of(&[pax(records), stored, member("a.txt", "a"), sample("b")]);
        let source = shard.open();
        assert_eq!(image(&source, 0), expected);
        assert_eq!(keys(&source), ["0.tar/a", "0.tar/b"]);
    }
    let shard = shard_of(&[pax(&oldest), member("a.png", "abcd"), member("a.txt", "a")]);
    let source = shard.open();
    assert_eq!(image(&source, 0), expected);
    // A map that is wrong is this sample's flaw.
    let wrong = [name, ("GNU.sparse.map", "0,2,5,9"), ("GNU.sparse.size", "8")];
    let members = [pax(&wrong), member("x.png", "abcd"), member("a.txt", "a"), sample("b")];
    let shard = shard_of(&members);
    let source = shard.open();
    let error = read(&source, 0).unwrap_err().to_string();
    assert!(error.contains("its sparse map has 9 bytes at 5, out of place"), "{error}");
    assert!(read(&source, 1).is_ok());
}

/// One of them ended the job, although the data set's other shards were sound.
#[test]
fn an_empty_tar_among_good_ones_is_passed_over_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        folder.path().join(name).display().to_string()
    };
    let urls = vec![
        write("0.tar", &archive(&[])),
        write("1.tar", &archive(&[sample("a"), sample("b")])),
        write("2.tar", b""),
    ];
    let log = logged(|| {
        let source = open(urls.clone()).unwrap();
        assert_eq!(source.shard_sizes(), [0, 2, 0]);
        assert_eq!(keys(&source), ["1.tar/a", "1.tar/b"]);
    });
    assert!(log.contains("0.tar") && log.contains("2.tar"), "{log}");
    assert!(!log.contains("1.tar"), "{log}");
    let error = open(vec![urls[0].clone(), urls[2].clone()]).unwrap_err();
    assert!(error.to_string().contains("0.tar holds no sample: an empty tar"), "{error}");
    // The order takes it, too.
    assert_eq!(dataset(urls, 2).unwrap().len(), 2);
}

#[test]
fn members_that_are_neither_image_nor_caption_make_no_sample() {
    let members = [
        member("README.md", "read me"),
        sample("a"),
        member("license.txt.bak", "x"),
        member("folder/stats.json", "{}"),
        sample("b"),
        member("c.png", "image c"),
    ];
    let shard = shard_of(&members);
    let source = shard.open();
    assert_eq!(keys(&source)[..2], ["0.tar/a", "0.tar/b"]);
    assert_eq!(source.len(), 3);
    let error = read(&source, 2).unwrap_err().to_string();
    let expected = "sample c: no caption (.txt), as 1 of the 3 samples here; found .png (3), .txt (2), .json (1)";
    assert!(error.contains(expected), "{error}");
    assert!(error.contains("data.text_key"), "{error}");
}

/// OpenCLIP: keys may come again from where another shard was put into this one.
#[test]
fn a_second_member_of_one_extension_begins_another_sample() {
    let shard = shard_of(&[sample("a"), sample("a"), member("a.PNG", "x")]);
    let source = shard.open();
    assert_eq!(source.len(), 3);
    assert!(read(&source, 1).is_ok() && read(&source, 2).is_err());
}

#[test]
fn counts_of_another_rule_or_of_other_keys_are_counted_again() {
    let shard = shard_of(&[member("README.md", "x"), sample("a"), member("b.webp", "b")]);
    let cache = shard.folder.path().join("ringmaster-sizes.json");
    assert_eq!(shard.open().len(), 1);
    let text = std::fs::read_to_string(&cache).unwrap();
    let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
    old["0.tar"]["samples"] = 3.into();
    std::fs::write(&cache, old.to_string()).unwrap();
    assert_eq!(shard.open().len(), 3, "the cache is read");
    old["0.tar"].as_object_mut().unwrap().remove("rule");
    std::fs::write(&cache, old.to_string()).unwrap();
    assert_eq!(shard.open().len(), 1);
    assert_eq!(shard.open_with(|data| data.image_key.push("webp".into())).len(), 2);
}

/// Its samples would be bytes of the new shard at the places of the old one: corrupt, and counted as such.
#[test]
fn samples_of_a_replaced_shard_are_an_error_of_the_store_and_not_corrupt() {
    let two = |caption: &str| {
        archive(&[sample("a"), member("b.png", "image b"), member("b.txt", caption)])
    };
    let shard = shard_named("0.tar", &two("one"));
    let server = ringmaster_tests::web::WebServer::start(shard.folder.path());
    let sources = [shard.open(), open(vec![server.url("0.tar")]).unwrap()];
    for source in &sources {
        assert_eq!(image(source, 0), b"image a");
    }
    std::fs::write(&shard.url, [two("other"), vec![0; 512]].concat()).unwrap();
    for source in &sources {
        for index in 0..2 {
            let error = read(source, index).unwrap_err();
            let is_told = matches!(&error, SampleError::Store(Error::Replaced { url }) if url.ends_with("0.tar"));
            assert!(is_told, "{error:?}");
        }
    }
}

/// As `widsindex create` writes it, which counts a README.md, too.
#[test]
fn counts_of_webdatasets_index_are_taken_for_shards_of_that_length_and_after_sizes_json() {
    let shard = shard_of(&[sample("a"), sample("b")]);
    let index = |samples: u64, len: u64| {
        let shards = serde_json::json!([
            {"url": "https://host/data/9.tar", "nsamples": 9, "filesize": len, "md5sum": "x"},
            {"url": "https://host/data/0.tar", "nsamples": samples, "filesize": len},
        ]);
        let index = serde_json::json!({"wids_version": 1, "shardlist": shards});
        std::fs::write(shard.folder.path().join("shardindex.json"), index.to_string()).unwrap();
    };
    let len = std::fs::metadata(&shard.url).unwrap().len();
    index(3, len);
    assert_eq!(shard.open().len(), 3);
    let error = read(&shard.open(), 2).unwrap_err().to_string();
    assert!(error.contains("holds 2 samples, fewer than declared"), "{error}");
    index(3, len + 1);
    assert_eq!(shard.open().len(), 2);
    index(3, len);
    shard.declare(1);
    assert_eq!(shard.open().len(), 1);
}

#[test]
fn what_follows_the_end_marker_is_told_and_not_read() {
    let (first, second) = (archive(&[sample("a")]), archive(&[sample("b")]));
    let shard = shard_named("0.tar", &[first, second].concat());
    let log = logged(|| assert_eq!(keys(&shard.open()), ["0.tar/a"]));
    assert!(log.contains("more follows the end marker") && log.contains("byte=2048"), "{log}");
    let log = logged(|| drop(shard_named("0.tar", &archive(&[sample("a")])).open()));
    assert!(!log.contains("more follows"), "{log}");
}

#[test]
fn a_link_in_place_of_an_image_is_called_that() {
    let shard = shard_of(&[
        sample("a"),
        link("b.png", EntryType::Link, "a.png"),
        member("b.txt", "b"),
        link("c.png", EntryType::Symlink, "a.png"),
        member("c.txt", "c"),
    ]);
    let source = shard.open();
    for (index, name) in [(1, "b.png"), (2, "c.png")] {
        let error = read(&source, index).unwrap_err().to_string();
        assert!(error.contains(&format!("no image (.png): {name} is a link to a.png")), "{error}");
    }
    let error = shard_of(&[link("b.png", EntryType::Link, "a.png")]).refused();
    assert!(error.contains("b.png is a link to a.png"), "{error}");
}

#[test]
fn other_extensions_are_named_with_the_keys_to_set() {
    let members = [member("s1.input.png", "x"), member("s1.outputs.txt", "y")];
    let error = shard_of(&members).refused();
    let expected = "no member is an image (.png) or a caption (.txt); found .input.png (1), .outputs.txt (1); set \
                    data.image_key and data.text_key";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn members_of_a_sample_that_stand_apart_are_told() {
    let images = ["a", "b"].map(|key| member(&format!("{key}.png"), "image"));
    let texts = ["a", "b"].map(|key| member(&format!("{key}.txt"), "text"));
    let shard = shard_of(&[images, texts].concat());
    let source = shard.open();
    assert_eq!(source.len(), 4);
    for (index, what) in [(0, "no caption (.txt)"), (3, "no image (.png)")] {
        let error = read(&source, index).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("must stand next to each other"), "{error}");
    }
}

#[test]
fn too_many_samples_without_a_caption_say_how_many_and_the_setting() {
    let folder = tempfile::tempdir().unwrap();
    let damage = |_, sample: usize, extension: &str, bytes: Vec<u8>| {
        (extension != "txt" || !sample.is_multiple_of(5)).then_some(bytes)
    };
    let data = dataset(write_shards(folder.path(), 2, 40, damage), 16).unwrap();
    let error = load(loader_options(&data, 16)).unwrap_err().to_string();
    for expected in [
        "5 of these 5 have no image or no caption",
        "no caption (.txt), as 8 of the 40 samples here",
        "data.max_corrupt",
        "data.text_key",
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

/// Python's tarfile unpacks them on the way.
#[test]
fn shards_compressed_by_gzip_are_read_whatever_their_name() {
    let packed = gzip(&archive(&[sample("a"), sample("b"), sample("c")]));
    for name in ["0.tar", "0.tar.gz", "0.tgz"] {
        let shard = shard_named(name, &packed);
        let log = logged(|| {
            let source = shard.open();
            assert_eq!(keys(&source), ["a", "b", "c"].map(|key| format!("{name}/{key}")));
            assert_eq!(image(&source, 1), b"image b");
        });
        assert_eq!(log.matches("compressed by gzip").count(), 1, "{log}");
        // Nothing is unpacked to count again.
        shard.declare(3);
        assert_eq!(image(&shard.open(), 2), b"image c");
    }
}

#[test]
fn a_compressed_shard_is_one_block_if_its_name_says_so() {
    let many: Vec<Vec<u8>> = (0..9).map(|key| sample(&key.to_string())).collect();
    let packed = gzip(&archive(&many));
    assert_eq!(shard_named("0.tar.gz", &packed).open().block_samples(), 9);
    assert_eq!(shard_named("0.tar", &packed).open().block_samples(), 4);
}

#[test]
fn compressed_shards_give_the_batches_that_plain_ones_give_and_each_is_one_block() {
    let folder = tempfile::tempdir().unwrap();
    let plain = write_shards(folder.path(), 6, 20, keep);
    let compress = |url: &String| {
        std::fs::write(format!("{url}.gz"), gzip(&std::fs::read(url).unwrap())).unwrap();
        format!("{url}.gz")
    };
    let packed: Vec<String> = plain.iter().map(compress).collect();
    let load = |urls: Vec<String>, block_samples| {
        let mut data = data(vec![spec::Source::train(urls)]);
        data.block_samples = block_samples;
        let dataset = Arc::new(Dataset::open(&data, 16).unwrap());
        let mut loader = Loader::start(loader_options(&dataset, 16)).unwrap();
        let batches: Vec<Batch> = (0..4).map(|_| loader.next().unwrap()).collect();
        (batches, loader.fetched().unwrap().blocks)
    };
    let (plain, packed) = (load(plain, 20), load(packed, 4));
    assert!(plain.0 == packed.0);
    assert!(packed.1 <= 6, "{} blocks of 6 shards", packed.1);
}

#[test]
fn a_compressed_shard_that_is_cut_keeps_what_came_before() {
    let noise =
        |key: usize| (0..4000).map(|i| (i * i * 31 + i * key * 7) as u8).collect::<Vec<u8>>();
    let members: Vec<Vec<u8>> = (0..20)
        .flat_map(|key| {
            [member(&format!("{key}.png"), noise(key)), member(&format!("{key}.txt"), "x")]
        })
        .collect();
    let packed = gzip(&archive(&members));
    let shard = shard_named("0.tar.gz", &packed[..packed.len() / 2]);
    let source = shard.open();
    assert!((1..20).contains(&source.len()), "{}", source.len());
    let reason = &source.damaged()[0].reason;
    assert!(
        reason.starts_with("compressed by gzip, and cannot be unpacked after byte"),
        "{reason}"
    );
    assert_eq!(image(&source, 0), noise(0));
    // What stands behind the whole tar is no damage; a tar without its end is.
    for (unpacked, behind, damaged) in [
        (archive(&[sample("a")]), &b"noise"[..], 0),
        (archive(&[sample("a")]), &[0; 512], 0),
        (sample("a"), b"noise", 1),
    ] {
        let shard = shard_named("0.tar.gz", &[gzip(&unpacked), behind.to_vec()].concat());
        let source = shard.open();
        assert_eq!((source.len(), source.damaged().len()), (1, damaged));
    }
    let error = shard_named("0.tar.gz", &gzip(b"no tar")).refused();
    assert!(error.contains("0.tar.gz holds no sample: not a tar archive"), "{error}");
}

#[test]
fn long_names_pax_names_and_names_in_latin_1_are_keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.tar");
    let long = format!("{}/x", "folder".repeat(30));
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    for (extension, bytes) in [("png", "image"), ("txt", "text")] {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, format!("{long}.{extension}"), bytes.as_bytes()).unwrap();
    }
    let mut bytes = tar.into_inner().map(|_| std::fs::read(&path).unwrap()).unwrap();
    bytes.truncate(bytes.len() - 1024);
    let latin = |name: &[u8], bytes: &str| member_with(name, FILE, bytes.as_bytes(), |_| ());
    let rest = [
        pax(&[("path", "é/y.png")]),
        member("short", "image"),
        pax(&[("path", "é/y.txt")]),
        member("short", "text"),
        // Two keys that differ in a byte that is no UTF-8.
        latin(b"caf\xe9.png", "1"),
        latin(b"caf\xe8.txt", "2"),
        latin(b"caf\xe9.png", "3"),
        latin(b"caf\xe9.txt", "4"),
    ];
    bytes.extend(archive(&rest));
    std::fs::write(&path, bytes).unwrap();
    let source = open(vec![path.display().to_string()]).unwrap();
    assert_eq!(source.len(), 5);
    let key = |index| read(&source, index).unwrap().key;
    assert_eq!([key(0), key(1)], [format!("0.tar/{long}"), "0.tar/é/y".to_owned()]);
    assert!(read(&source, 2).is_err() && read(&source, 3).is_err());
    assert_eq!(image(&source, 4), b"3");
}

/// OpenCLIP's rule, told another way: a member ends a sample if its key is another or its extension is there.
fn grouped(names: &[(u8, usize)]) -> Vec<(u8, Vec<usize>)> {
    let mut groups: Vec<(u8, Vec<usize>)> = Vec::new();
    for &(key, extension) in names {
        match groups.last_mut() {
            Some((last, members)) if *last == key && !members.contains(&extension) => {
                members.push(extension);
            }
            _ => groups.push((key, vec![extension])),
        }
    }
    groups.retain(|(_, members)| members.iter().any(|extension| *extension < 2));
    groups
}

proptest::proptest! {
    #[test]
    fn members_in_any_order_are_grouped_as_openclip_groups_them(
        names in proptest::collection::vec((b'a'..=b'c', 0_usize..4), 1..20),
    ) {
        let member = |&(key, extension): &(u8, usize)| {
            let extension = ["png", "txt", "json", "seg.png"][extension];
            member(&format!("{}.{extension}", char::from(key)), "x")
        };
        let expected = grouped(&names);
        let shard = shard_of(&names.iter().map(member).collect::<Vec<_>>());
        let opened = open(vec![shard.url.clone()]);
        proptest::prop_assert_eq!(opened.is_ok(), !expected.is_empty());
        for (index, (key, members)) in opened.iter().flat_map(|_| expected.iter().enumerate()) {
            let source = opened.as_ref().unwrap();
            proptest::prop_assert_eq!(source.len(), expected.len() as u64);
            let read = read(source, index as u64);
            proptest::prop_assert_eq!(read.is_ok(), members.contains(&0) && members.contains(&1));
            if let Ok(sample) = read {
                proptest::prop_assert_eq!(sample.key, format!("0.tar/{}", char::from(*key)));
            }
        }
    }

    #[test]
    fn no_byte_of_a_tar_that_is_changed_is_a_panic(
        at in 0_usize..4096,
        to in proptest::prelude::any::<u8>(),
    ) {
        let link = link("b.png", EntryType::Link, "a.png");
        let records = [("GNU.sparse.map", "0,1"), ("GNU.sparse.size", "8")];
        let mut bytes = [pax(&records), member("a.png", "x"), member("a.txt", "a"), link].concat();
        let at = at % bytes.len();
        bytes[at] = to;
        let shard = shard_named("0.tar", &bytes);
        if let Ok(source) = open(vec![shard.url.clone()]) {
            let _ = keys(&source);
        }
    }
}
