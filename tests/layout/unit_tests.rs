//! Where unit tests lie, and what the file of a module is called.

use std::fs;

use regex::Regex;

use super::{rust_files, sources};

#[test]
fn what_is_compiled_for_tests_alone_lies_where_tests_lie() {
    // With whatever stands between: attributes, docs, other conditions; as a file or in place.
    let declaration = r"(?m)^\s*#\[cfg\((?:all\()?test\b.*\]\n(?:\s*(?:#\[|//).*\n)*\s*(?:pub(?:\([^)]*\))? )?mod (\w+)\s*[;{]";
    let declaration = Regex::new(declaration).expect("a pattern");
    let (mut count, mut elsewhere) = (0, Vec::new());
    for path in sources().iter().flat_map(|folder| rust_files(folder)) {
        let code = fs::read_to_string(&path).expect("a file of Rust");
        for name in declaration.captures_iter(&code).map(|found| found[1].to_owned()) {
            count += 1;
            if name != "tests" && !name.ends_with("_tests") {
                elsewhere.push(format!("{}: mod {name}", path.display()));
            }
        }
    }
    assert!(count > 20, "the pattern finds modules: {count}");
    assert!(
        elsewhere.is_empty(),
        "call them …_tests, or move them into the module tests:\n{}",
        elsewhere.join("\n")
    );
}

#[test]
fn a_module_that_has_a_folder_is_the_mod_rs_in_it() {
    let files = sources().iter().flat_map(|folder| rust_files(folder)).collect::<Vec<_>>();
    let beside = files.iter().filter(|path| path.with_extension("").is_dir());
    let beside: Vec<String> = beside.map(|path| path.display().to_string()).collect();
    assert!(beside.is_empty(), "move these to mod.rs in their folders:\n{}", beside.join("\n"));
}
