//! What keeps the parts of the workspace apart: dependencies point one way, between crates and between the
//! top modules of each crate; nothing but ranks needs libtorch; unsafe code lies in one module per crate; tests
//! lie where they are looked for; pages for people name what is there.

mod crates;
mod modules;
mod pages;
mod unit_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Who depends on whom, by name.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace").to_owned()
}

/// Returns the folders with a crate's sources.
fn sources() -> Vec<PathBuf> {
    let folders = ["", "crates", "xtask"].map(|folder| root().join(folder));
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).expect("a folder"));
    let found = entries.map(|entry| entry.expect("an entry").path().join("src"));
    found.filter(|path| path.is_dir()).collect()
}

/// Returns all files of Rust below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Returns one circle of the graph, its first name repeated at the end.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    let mut left = graph.clone();
    // Who depends on nothing that is left is on no circle.
    loop {
        let names: BTreeSet<String> = left.keys().cloned().collect();
        left.values_mut().for_each(|needs| needs.retain(|name| names.contains(name)));
        left.retain(|_, needs| !needs.is_empty());
        if left.len() == names.len() {
            break;
        }
    }
    // Everybody left depends on somebody left: following them leads round.
    let mut path = vec![left.keys().next()?.clone()];
    loop {
        let next = left[path.last()?].first()?.clone();
        let seen = path.iter().position(|name| *name == next);
        path.push(next);
        if let Some(start) = seen {
            return Some(path.split_off(start));
        }
    }
}

#[test]
fn circles_are_found() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        graph
    };
    assert_eq!(circle(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
    let found = circle(&graph(&[("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]));
    assert_eq!(found, Some(["b", "c", "b"].map(str::to_owned).to_vec()));
}
