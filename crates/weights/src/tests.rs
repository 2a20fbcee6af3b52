use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden").join(name)
}

fn open(name: &str) -> Weights {
    Weights::open(&golden(name)).unwrap_or_else(|error| panic!("{error}"))
}

/// Opens a file of these bytes.
fn open_bytes(bytes: &[u8]) -> Result<Weights, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Weights::open(file.path())
}

/// Compares names, shapes and values, exactly.
fn assert_same(what: &str, found: &BTreeMap<String, Tensor>) {
    let expected = open(&format!("{what}.safetensors"));
    let names = |tensors: &BTreeMap<String, Tensor>| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected.tensors()), "{what}");
    for (name, expected) in expected.tensors() {
        assert_eq!(found[name].shape(), expected.shape(), "{what}: {name}");
        assert_eq!(found[name].to_f32(), expected.to_f32(), "{what}: {name}");
    }
}

#[test]
fn pytorchs_checkpoints_hold_what_pytorch_finds_in_them() {
    for what in
        ["weights-zip", "weights-legacy", "weights-legacy-lone", "weights-script", "weights-epoch"]
    {
        let weights = open(&format!("{what}.pt"));
        assert_eq!(weights.format(), Format::PyTorch);
        assert_same(what, weights.tensors());
    }
    let zip = open("weights-zip.pt");
    assert_eq!(zip.tensors()["brain"].dtype(), DType::BF16);
    assert_eq!(zip.tensors()["counts"].dtype(), DType::I64);
}

#[test]
fn what_lies_beside_the_weights_can_be_read() {
    let weights = open("weights-epoch.pt");
    let root = weights.root().unwrap();
    assert_eq!(root.get("epoch").unwrap().as_i64(), Some(1));
    assert_eq!(root.get("name").unwrap().as_str(), Some("toy"));
    let optimizer = root.get("optimizer").unwrap();
    let first = optimizer.get("state").unwrap().get_index(0).unwrap();
    assert_eq!(first.get("step").unwrap().as_f64(), Some(2.0));
    assert_eq!(first.get("exp_avg").unwrap().as_tensor().unwrap().shape(), [2]);
    let groups: Vec<_> = optimizer.get("param_groups").unwrap().elements().collect();
    assert_eq!(groups[1].get("lr").unwrap().as_f64(), Some(1e-2));
    let numbers: Vec<_> = groups[1].get("params").unwrap().elements().collect();
    assert_eq!(numbers[0].as_i64(), Some(1));
}

#[test]
fn googles_checkpoints_become_what_open_clip_and_timm_make_of_them() {
    for what in ["weights-big-vision", "weights-big-vision-stacked"] {
        let weights = open(&format!("{what}.npz"));
        assert_eq!(weights.format(), Format::Npz);
        assert_same(what, &big_vision(&weights).unwrap().unwrap());
    }
    let weights = open("weights-augreg.npz");
    assert!(big_vision(&weights).unwrap().is_none());
    assert_same("weights-augreg", &vision_transformer(&weights).unwrap().unwrap());
    assert!(vision_transformer(&open("weights-zip.pt")).unwrap().is_none());
}

#[test]
fn a_pickle_that_would_call_a_function_is_refused_by_its_name() {
    let error = Weights::open(&golden("weights-malice.pt")).unwrap_err();
    assert!(matches!(&error, Error::Refused { global, .. } if global == "posix.system"));
    let text = error.to_string();
    assert!(text.contains("posix.system (at byte"), "{text}");
    assert!(text.contains("refused, and nothing was executed"), "{text}");
    assert!(!Path::new("malice-was-here").exists());
    for global in [&b"cos\nsystem\n"[..], b"cbuiltins\neval\n", b"ctorch\nload\n"] {
        let pickle = [global, b"(S'x'\ntR."].concat();
        let error = pickle::run(&pickle, &mut |_, _, _, _| Err(String::new())).unwrap_err();
        assert!(matches!(error.reason, pickle::Reason::Refused(_)));
        assert_eq!(error.position, 0);
    }
}

#[test]
fn files_that_are_cut_short_or_no_weights_say_so() {
    let whole = std::fs::read(golden("weights-zip.safetensors")).unwrap();
    let text = open_bytes(&whole[..whole.len() - 5]).unwrap_err().to_string();
    assert!(text.contains("is no intact safetensors file"), "{text}");
    let text = open_bytes(&whole[..40]).unwrap_err().to_string();
    assert!(text.contains("its header and its 40 bytes do not go together"), "{text}");
    for name in ["weights-zip.pt", "weights-legacy.pt", "weights-augreg.npz"] {
        let whole = std::fs::read(golden(name)).unwrap();
        for part in 1..20 {
            let cut = whole.len() * part / 20;
            assert!(open_bytes(&whole[..cut]).is_err(), "{name} cut to {cut} bytes");
        }
    }
    let text = open_bytes(b"version 1 of something").unwrap_err().to_string();
    assert!(text.contains("begins like no weights that are known (\"version \")"), "{text}");
    assert!(open_bytes(b"").unwrap_err().to_string().contains("it is empty"));
    let missing = Weights::open(Path::new("nothing.pt")).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read nothing.pt");
}

/// A clone without git-lfs, a page saved in place of a file: "begins like no weights" helped nobody.
#[test]
fn what_people_have_in_place_of_weights_is_told_with_what_to_do() {
    let numpy = b"\x93NUMPY\x01\0v\0{'descr': '<f4'";
    let mut tar = vec![b'a'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let plain = b"\x80\x04\x95\x1c\0\0\0\0\0\0\0}";
    for (bytes, expected) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:4665c7\nsize 605157884\n"[..],
            "is a git-lfs pointer, which stands for a file of 605157884 bytes (oid sha256:4665c7); fetch \
             that with `git lfs pull`",
        ),
        (
            b"<!DOCTYPE html>\n<html>",
            "is an HTML page, as a web server shows it in place of a file",
        ),
        (b"\x1f\x8b\x08\0\0\0\0\0", "is compressed by gzip; unpack it with gunzip"),
        (b"\xfd7zXZ\0\0", "is compressed by xz; unpack it with unxz"),
        (numpy, "is a single array of numpy's"),
        (&tar, "is a tar archive; unpack it with tar -xf"),
        (plain, "is a pickle without what PyTorch puts around it"),
        (
            b"{\"architectures\": [\"CLIPModel\"], \"torch_dtype\": \"float32\"}",
            "is a JSON document with the keys architectures, torch_dtype and no weight_map",
        ),
    ] {
        let text = open_bytes(bytes).unwrap_err().to_string();
        assert!(text.contains(expected) && text.contains("; expected safetensors"), "{text}");
    }
    let folder = tempfile::tempdir().unwrap();
    let text = Weights::open(folder.path()).unwrap_err().to_string();
    assert!(text.contains("is a folder; name the file of weights in it"), "{text}");
}

#[test]
fn a_zip_archive_of_something_else_is_told_from_one_that_is_cut_short() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut archive = zip::ZipWriter::new(file.reopen().unwrap());
    for name in ["model/config.json", "model/model.safetensors"] {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    }
    archive.finish().unwrap();
    let text = Weights::open(file.path()).unwrap_err().to_string();
    assert!(
        text.contains("is a zip archive of 2 files, \"model/config.json\" among them"),
        "{text}"
    );
    let whole = std::fs::read(file.path()).unwrap();
    let text = open_bytes(&whole[..whole.len() - 30]).unwrap_err().to_string();
    assert!(text.contains("is no intact zip archive: its directory at the end of its"), "{text}");
}

#[test]
fn tensors_of_a_type_that_is_not_read_are_no_damage() {
    let header = r#"{"ok":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "small":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[4,8]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
    let weights = open_bytes(&file).unwrap();
    assert_eq!(weights.tensors().len(), 1);
    let text = weights.get("small").unwrap_err().to_string();
    assert!(text.contains("is stored as a tensor of F8_E4M3, which is not read here"), "{text}");
}

#[test]
fn views_that_leave_their_storage_are_refused() {
    let storage = || map::Bytes::Own(std::sync::Arc::new(vec![0; 24]));
    let view = |shape: &[usize], strides: &[usize], offset| {
        Tensor::new(DType::F32, shape.to_vec(), strides.to_vec(), offset, storage())
    };
    assert!(view(&[2, 3], &[3, 1], 0).is_ok());
    assert!(view(&[2, 3], &[3, 1], 1).is_err());
    assert!(view(&[usize::MAX, 2], &[1, 1], 0).is_err());
    assert!(view(&[2], &[usize::MAX], 1).is_err());
    assert!(view(&[1 << 40], &[0], 0).is_err(), "repeated without bound");
    assert!(view(&[0, 5], &[5, 1], 0).is_ok());
}

#[test]
fn empty_and_many_dimensional_views_end_no_reader() {
    let storage = || map::Bytes::Own(std::sync::Arc::new(vec![0; 24]));
    let view = |shape: &[usize], strides: &[usize], offset| {
        Tensor::new(DType::F32, shape.to_vec(), strides.to_vec(), offset, storage())
    };
    // Past the end of the storage, where a slice would be out of range.
    assert!(view(&[0], &[1], 1000).unwrap().to_f32().is_empty());
    // More rows of nothing than can be walked over.
    let rows = view(&[1 << 50, 0], &[usize::MAX, 1], usize::MAX).unwrap();
    assert!(rows.to_f32().is_empty());
    assert!(rows.select(7).unwrap().to_f32().is_empty());
    // Deeper than a stack: the walk goes one call deeper for each dimension.
    assert!(view(&[1; 64], &[0; 64], 0).is_ok());
    assert!(view(&vec![1; 1 << 20], &vec![0; 1 << 20], 0).unwrap_err().contains("dimensions"));
}

#[test]
fn stacked_layers_without_a_layer_are_refused() {
    let header = r#"{"embedding/kernel":{"dtype":"F32","shape":[1,1,3,1],"data_offsets":[0,12]},
        "embedding/bias":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},
        "pos_embedding":{"dtype":"F32","shape":[1],"data_offsets":[16,20]},
        "Transformer/encoderblock/LayerNorm_0/scale":{"dtype":"F32","shape":[],"data_offsets":[20,24]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 24]].concat();
    let weights = open_bytes(&file).unwrap();
    let text = vision_transformer(&weights).unwrap_err().to_string();
    assert!(text.contains("has shape []; expected [depth, width]"), "{text}");
}

/// Ends in an error soon: it has 2^60 paths.
#[test]
fn modules_that_share_modules_without_end_are_refused() {
    let object = b"c__torch__\nM\n)\x81";
    let mut pickle = [&object[..], b"q\0"].concat();
    for level in 1..=60 {
        pickle.extend(object);
        pickle.extend(b"}(");
        for name in [b"aaaaaaaa", b"bbbbbbbb"] {
            pickle.extend([&b"\x8c\x08"[..], name, &[b'h', level - 1]].concat());
        }
        pickle.extend([b'u', b'b', b'q', level]);
    }
    pickle.push(b'.');
    let (built, _) = pickle::run(&pickle, &mut |_, _, _, _| Err(String::new())).unwrap();
    let text = torch::named_tensors(built.root()).unwrap_err();
    assert!(text.contains("more than 1048576 attributes"), "{text}");
}

/// A megabyte of pickle asked for gigabytes: every two bytes that name a long text copied it.
#[test]
fn a_pickle_that_copies_what_it_names_again_and_again_is_refused() {
    let text = vec![b'a'; 1 << 20];
    let start =
        [&b"c_codecs\nencode\nq\0X"[..], &(text.len() as u32).to_le_bytes(), &text[..], b"q\x01"];
    let run = |calls: usize| {
        let pickle = [start.concat(), b"h\0h\x01\x85R0".repeat(calls), b".".to_vec()].concat();
        pickle::run(&pickle, &mut |_, _, _, _| Err(String::new())).map(|(_, end)| end)
    };
    assert!(run(2).is_ok());
    let failure = run(200).unwrap_err();
    assert!(
        matches!(&failure.reason, pickle::Reason::Broken(text) if text.contains("copies far more"))
    );
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(
        name in prop::sample::select(vec![
            "weights-zip.pt", "weights-legacy.pt", "weights-epoch.pt", "weights-script.pt",
            "weights-zip.safetensors", "weights-augreg.npz",
        ]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = std::fs::read(golden(name)).unwrap();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Ok(weights) = open_bytes(&bytes) {
            for tensor in weights.tensors().values() {
                let _ = tensor.to_f32();
            }
            let _ = vision_transformer(&weights);
        }
    }

    #[test]
    fn no_pickle_makes_the_machine_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = pickle::run(&bytes, &mut |_, _, _, _| Err(String::new()));
    }
}
