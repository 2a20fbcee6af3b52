//! What the pages for people name: files that exist, links that lead somewhere.

use std::fs;
use std::path::PathBuf;

use regex::Regex;

use super::root;

/// Pages that speak of the project as it is. The changelog speaks of what was.
fn pages() -> Vec<(PathBuf, String)> {
    let top = ["README.md", "CONTRIBUTING.md"].map(|name| root().join(name));
    let docs = fs::read_dir(root().join("docs")).expect("a folder of pages");
    let docs = docs.map(|entry| entry.expect("an entry").path());
    let pages =
        top.into_iter().chain(docs).filter(|path| path.extension().is_some_and(|e| e == "md"));
    pages.map(|path| (path.clone(), fs::read_to_string(path).expect("a page"))).collect()
}

/// Says of every page which of the things that `pattern` captures are missing.
fn missing(pattern: &str, exists: impl Fn(&PathBuf, &str) -> bool) -> Vec<String> {
    let pattern = Regex::new(pattern).expect("a pattern");
    let mut found = Vec::new();
    for (page, text) in pages() {
        for (number, line) in (1..).zip(text.lines()) {
            let named = pattern.captures_iter(line).map(|c| c[1].to_owned());
            let gone = named.filter(|name| !exists(&page, name));
            found.extend(gone.map(|name| format!("{}:{number}: {name}", page.display())));
        }
    }
    found
}

#[test]
fn every_file_that_a_page_names_is_there() {
    let folders = "bench|cli|configs|coordinator|crates|docs|proto|tests|worker|xtask";
    let path = format!(r"`((?:{folders})/[\w./-]+)`");
    let named = Regex::new(&path).expect("a pattern");
    let count: usize = pages().iter().map(|(_, text)| named.find_iter(text).count()).sum();
    assert!(count > 100, "the pattern finds paths: {count}");
    let gone = missing(&path, |_, name| root().join(name).exists());
    assert!(gone.is_empty(), "these paths do not exist:\n{}", gone.join("\n"));
}

#[test]
fn every_link_between_pages_leads_to_a_file() {
    let gone = missing(r"\]\(([^)#:]+)(?:#[^)]*)?\)", |page, link| {
        page.parent().is_some_and(|folder| folder.join(link).exists())
    });
    assert!(gone.is_empty(), "these links lead nowhere:\n{}", gone.join("\n"));
}
