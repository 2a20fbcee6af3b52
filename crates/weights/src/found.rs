//! What a file is that was to be weights, a shard, a picture or JSON and is none.
//!
//! What people have by mistake begins in a way that tells: saying so, and what to do, is of more use
//! than the complaint of a reader that expected something else.

/// Bytes from the beginning of a file that are enough to tell.
pub const BEGINNING: usize = 1024;

/// How git-lfs's pointers begin (`docs/spec.md` of git-lfs): under its name, and under the ones it had.
const POINTERS: [&str; 3] = [
    "version https://git-lfs.github.com/spec/",
    "version https://hawser.github.com/spec/",
    "version http://git-media.io/",
];
/// What begins with these bytes, and what to do about it.
const KNOWN: [(&[u8], &str); 17] = [
    (b"\x1f\x8b", "compressed by gzip; unpack it with gunzip"),
    (b"\xfd7zXZ\0", "compressed by xz; unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it with unzstd"),
    (b"BZh", "compressed by bzip2; unpack it with bunzip2"),
    (b"\x04\x22\x4d\x18", "compressed by lz4; unpack it with unlz4"),
    (b"PK\x03\x04", "a zip archive; unpack it with unzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!\x1a\x07", "a rar archive; unpack it"),
    (b"PAR1", "a Parquet file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and MATLAB write them"),
    (b"\x93NUMPY", "a single array of numpy's (.npy)"),
    (b"GGUF", "a GGUF file, as llama.cpp loads them"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"#!", "a script"),
];
/// Returns what the file is that begins with `bytes`, and what to do about it, as what follows "it is";
/// none for what cannot be told or is nothing that anybody has by mistake. [`BEGINNING`] bytes suffice.
pub fn described(bytes: &[u8]) -> Option<String> {
    if let Some(pointer) = pointer(bytes) {
        return Some(pointer);
    }
    if let Some((_, what)) = KNOWN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some((*what).to_owned());
    }
    if bytes.len() >= 64 && bytes.iter().all(|byte| *byte == 0) {
        let what = "nothing but zeros where it begins, as a download that was broken off leaves it; \
                    fetch it again";
        return Some(what.to_owned());
    }
    markup(bytes)
}

/// Returns the same of a git-lfs pointer alone, the text that a repository holds in place of a large file:
/// what nobody means wherever it stands, a caption included.
pub fn pointer(bytes: &[u8]) -> Option<String> {
    if !POINTERS.iter().any(|version| bytes.starts_with(version.as_bytes())) {
        return None;
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(BEGINNING)]);
    let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let size = field("size ").and_then(|size| size.trim().parse::<u64>().ok());
    let size = size.map_or_else(|| "a file".to_owned(), |size| format!("a file of {size} bytes"));
    let plain = |oid: &&str| {
        oid.len() <= 80 && oid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':')
    };
    let oid = field("oid ").map(str::trim).filter(plain);
    let oid = oid.map_or_else(String::new, |oid| format!(" (oid {oid})"));
    Some(format!(
        "a git-lfs pointer, which stands for {size}{oid}; fetch that with `git lfs pull` in the \
         repository it lies in"
    ))
}

/// Pages and documents that servers send in place of a file.
fn markup(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let begins =
        |with: &[u8]| bytes.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    if begins(b"<!doctype html") || begins(b"<html") || begins(b"<head") {
        let what = "an HTML page, as a web server shows it in place of a file; download from the link of \
                    the file itself, logged in where that is asked for";
        return Some(what.to_owned());
    }
    if begins(b"<?xml") || begins(b"<error>") {
        let what = "an XML document, as an object store answers with where it refuses; read it and \
                    download again";
        return Some(what.to_owned());
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_git_lfs_pointer_is_told_with_its_size_its_oid_and_the_command() {
        let oid = "4665c7ab19b4f1b1d3a3c5f0d8d6b6f3a1c2e3d4f5a6b7c8d9e0f1a2b3c4d5e6";
        let text = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 605157884\n"
        );
        assert_eq!(
            described(text.as_bytes()).unwrap(),
            format!(
                "a git-lfs pointer, which stands for a file of 605157884 bytes (oid sha256:{oid}); \
                 fetch that with `git lfs pull` in the repository it lies in"
            )
        );
        let old = described(b"version https://hawser.github.com/spec/v1\n").unwrap();
        assert!(old.starts_with("a git-lfs pointer, which stands for a file; fetch"), "{old}");
        // What stands in a pointer is not repeated unless it looks like what belongs there.
        let odd = described(b"version https://git-lfs.github.com/spec/v1\noid \x1b[31m\nsize -1\n");
        assert!(odd.unwrap().starts_with("a git-lfs pointer, which stands for a file; fetch"));
        assert_eq!(described(b"version 1"), None);
    }

    #[test]
    fn pages_archives_and_other_files_are_told_and_what_belongs_here_is_not() {
        for (bytes, expected) in [
            (&b"\n <!DOCTYPE html><html>"[..], "an HTML page"),
            (b"<HTML lang=en>", "an HTML page"),
            (b"\xef\xbb\xbf<?xml version=\"1.0\"?><Error><Code>", "an XML document"),
            (b"\x1f\x8b\x08\0", "compressed by gzip"),
            (b"\xfd7zXZ\0\0", "compressed by xz"),
            (b"PK\x03\x04\x14", "a zip archive"),
            (b"GGUF\x03", "a GGUF file"),
            (&[0; 600], "nothing but zeros"),
        ] {
            let found = described(bytes).unwrap();
            assert!(found.starts_with(expected), "{found}");
        }
        for bytes in [&b""[..], b"{\"a\": 1}", b"hello", b"\x80\x02", b"\x60\0\0\0\0\0\0\0{\"__m"] {
            assert_eq!(described(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_told_or_not(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            let _ = described(&bytes);
            let pointer = [POINTERS[0].as_bytes(), &bytes[..]].concat();
            let told = described(&pointer).unwrap();
            prop_assert!(told.chars().all(|c| !c.is_control()), "{}", told);
        }
    }
}
