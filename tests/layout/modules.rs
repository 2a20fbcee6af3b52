//! Which module of a crate may use which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

use super::{Graph, circle, root, rust_files, sources};

/// What `open_clip` is: models by name, their weights, files and captions. Training is built on it.
const OPEN_CLIP: [&str; 2] = ["model", "factory"];
/// What it may use of the worker.
const OPEN_CLIP_USES: [&str; 4] = ["factory", "ffi", "model", "progress"];

/// Returns all files of Rust below a folder, but for those that only tests are made of.
fn files(folder: &Path) -> Vec<PathBuf> {
    let of_tests = |path: &Path| {
        let below = path.strip_prefix(folder).expect("it lies below");
        below.iter().filter_map(|part| part.to_str()).any(|part| {
            let name = part.trim_end_matches(".rs");
            ["tests", "testing"].contains(&name) || name.ends_with("_tests")
        })
    };
    rust_files(folder).into_iter().filter(|path| !of_tests(path)).collect()
}

/// A file's code without its tests and comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a file of Rust");
    let tests = Regex::new(r"(?m)^#\[cfg\(test\)\]\n(#\[.*\]\n)*mod tests \{").expect("a pattern");
    let end = tests.find(&text).map_or(text.len(), |found| found.start());
    let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns which top modules of a crate use which.
fn modules(sources: &Path) -> Graph {
    let files: Vec<PathBuf> = files(sources);
    let top = |path: &Path| {
        let below = path.strip_prefix(sources).expect("it lies below");
        let first = below.iter().next().and_then(|first| first.to_str()).expect("a name");
        first.trim_end_matches(".rs").to_owned()
    };
    let names: BTreeSet<String> =
        files.iter().map(|path| top(path)).filter(|name| name != "lib" && name != "main").collect();
    let reexports = reexports(sources);
    let mut graph = Graph::new();
    for path in &files {
        let own = top(path);
        if names.contains(&own) {
            let used = uses(&code(path), depth(sources, path));
            let home = |name: String| reexports.get(&name).cloned().unwrap_or(name);
            let used = used.into_iter().map(home);
            let others = used.filter(|name| names.contains(name) && *name != own);
            graph.entry(own.clone()).or_default().extend(others);
        }
    }
    graph
}

/// Returns the module of each name that a crate's root gives out.
fn reexports(sources: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(sources.join("lib.rs")).unwrap_or_default();
    let one = Regex::new(r"(?m)^pub(?:\(crate\))? use (?:self::)?(\w+)(?:::\w+)*::(\w+);");
    let list = Regex::new(r"(?ms)^pub(?:\(crate\))? use (?:self::)?(\w+)(?:::\w+)*::\{([^}]*)\};");
    let mut homes = BTreeMap::new();
    for found in one.expect("a pattern").captures_iter(&text) {
        homes.insert(found[2].to_owned(), found[1].to_owned());
    }
    for found in list.expect("a pattern").captures_iter(&text) {
        for name in found[2].split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let given = name.rsplit(" as ").next().unwrap_or(name);
            homes.insert(given.to_owned(), found[1].to_owned());
        }
    }
    // A module keeps its own name.
    homes.remove("self");
    homes
}

/// Returns how many times `super` leads from a file's module to its crate's root.
fn depth(sources: &Path, path: &Path) -> usize {
    let below = path.strip_prefix(sources).expect("it lies below");
    let folders = below.iter().count() - 1;
    if below.file_name().is_some_and(|name| name == "mod.rs") { folders } else { folders + 1 }
}

/// Returns the modules at the crate's root that a file names.
fn uses(code: &str, depth: usize) -> BTreeSet<String> {
    let root = format!(r"\b(?:crate::|(?:super::){{{depth}}})");
    let one = Regex::new(&format!(r"{root}(\w+)")).expect("a pattern");
    let list = Regex::new(&format!(r"{root}\{{([^;]*)\}};")).expect("a pattern");
    let word = Regex::new(r"(?:^|[{,])\s*(\w+)").expect("a pattern");
    let mut found: BTreeSet<String> = one.captures_iter(code).map(|c| c[1].to_owned()).collect();
    for names in list.captures_iter(code) {
        found.extend(word.captures_iter(&names[1]).map(|c| c[1].to_owned()));
    }
    found
}

#[test]
fn uses_of_modules_are_recognised() {
    let found = |code: &str| uses(code, 1).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(found("use crate::data::{self, Batch};"), "data");
    assert_eq!(
        found("use crate::{eval, loss::ring};\nlet x = super::step::run();"),
        "eval loss step"
    );
}

#[test]
fn no_top_modules_of_a_crate_use_one_another_in_a_circle() {
    let sources = sources();
    assert!(sources.len() > 10, "{sources:?}");
    let circles = sources.iter().filter_map(|folder| {
        let found = circle(&modules(folder))?;
        Some(format!("{}: {}", folder.display(), found.join(" uses ")))
    });
    let circles: Vec<String> = circles.collect();
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

/// Models can become a crate of their own as long as this holds.
#[test]
fn models_know_nothing_of_training() {
    let graph = modules(&root().join("worker/src"));
    for module in OPEN_CLIP {
        let used = graph.get(module).unwrap_or_else(|| panic!("{module} is gone: {graph:?}"));
        let foreign: Vec<_> =
            used.iter().filter(|name| !OPEN_CLIP_USES.contains(&name.as_str())).collect();
        assert!(foreign.is_empty(), "{module} uses {foreign:?}");
    }
    let above = Regex::new(r"\bringmaster_(?:agent|bench|coordinator)\b").expect("a pattern");
    let sources = root().join("worker/src");
    for path in files(&sources) {
        let below = path.strip_prefix(&sources).expect("it lies below");
        let top = below.iter().next().and_then(|first| first.to_str()).expect("a name");
        let module = top.trim_end_matches(".rs");
        if OPEN_CLIP.contains(&module) || OPEN_CLIP_USES.contains(&module) {
            let found = code(&path);
            let crates: Vec<_> = above.find_iter(&found).map(|name| name.as_str()).collect();
            assert!(crates.is_empty(), "{} uses {crates:?}", path.display());
        }
    }
}

#[test]
fn unsafe_code_lies_in_one_module_of_a_crate() {
    let allowed = Regex::new(r"#!?\[(allow|expect)\(unsafe_code").expect("a pattern");
    for folder in sources() {
        for path in files(&folder) {
            if allowed.is_match(&code(&path)) {
                let below = path.strip_prefix(&folder).expect("it lies below");
                let in_ffi = below.iter().any(|part| part == "ffi" || part == "ffi.rs");
                let declares = code(&path).contains("mod ffi");
                assert!(
                    in_ffi || declares,
                    "{} allows unsafe code; move it to ffi",
                    path.display()
                );
            }
        }
    }
}
