use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::*;
use crate::binaries::root;

/// Calls that have written down a skip when they return nothing.
const NOTING: [&str; 7] = [
    "skips::skip",
    "s3::server",
    "s3::strict_server",
    "python::with_grpc",
    "Troubled::new(",
    "Disk::new(",
    "test_device()",
];
/// Tests that are programs: they are started by others, with a variable that says what to do, and
/// have nothing to do otherwise.
const PROGRAMS: [&str; 5] = [
    "acts_as_a_rank_when_an_agent_starts_it",
    "gpu_rank_process",
    "stub_process",
    "skips_what_it_is_told",
    "no_seed_violates_an_invariant",
];

/// Skips in a process of its own, since variables belong to all threads of one.
fn skipping(extent: &str, set: &[(&str, &OsStr)]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "skips::tests::skips_what_it_is_told", "--nocapture"])
        .env_remove(FILE)
        .env_remove(REQUIRE)
        .env("RINGMASTER_TEST_SKIP", extent)
        .envs(set.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn skips_what_it_is_told() {
    match std::env::var("RINGMASTER_TEST_SKIP").as_deref() {
        Ok("whole") => skip("lathe", "no lathe is\there;\nget one"),
        Ok(_) => skip_part("lathe", "the lathe is blunt"),
        Err(_) => {}
    }
}

#[test]
fn a_skip_is_said_and_written_down_with_its_test_and_a_required_thing_fails_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("skips");
    for extent in ["whole", "part"] {
        let output = skipping(extent, &[(FILE, file.as_os_str())]);
        assert!(output.status.success(), "{output:?}");
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let records: Vec<Record> = text.lines().map(|line| line.parse().unwrap()).collect();
    let record = |extent, why: &str| Record {
        test: "skips::tests::skips_what_it_is_told".to_owned(),
        extent,
        why: why.to_owned(),
    };
    let expected = [
        record(Extent::Whole, "no lathe is here; get one"),
        record(Extent::Part, "the lathe is blunt"),
    ];
    assert_eq!(records, expected);

    let plain = skipping("part", &[]);
    let said = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert!(
        plain.status.success() && said.contains("skipped in part: the lathe is blunt"),
        "{said}"
    );
    let required =
        skipping("part", &[(REQUIRE, OsStr::new("s3, lathe")), (FILE, file.as_os_str())]);
    let said = String::from_utf8_lossy(&required.stderr).into_owned();
    assert!(
        !required.status.success() && said.contains("names lathe: the lathe is blunt"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "what fails is not skipped");
}

/// Every source file of the workspace that is compiled.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && !["target", "data", "runs"].contains(&&*name)
        {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// Thirty tests skipped without a word in the result, each in a way of its own.
#[test]
fn no_test_says_that_it_was_skipped_or_returns_early_without_writing_it_down() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 300, "{} files", files.len());
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        if name.starts_with("tests/src/skips") || name.starts_with("xtask/src/") {
            continue;
        }
        found.extend(prints_of(&text).into_iter().map(|line| format!("{name}: {line}")));
        found.extend(early_ends_of(&text).into_iter().map(|line| format!("{name}: {line}")));
    }
    assert!(found.is_empty(), "call skips::skip or skips::skip_part: {found:#?}");
}

/// Lines that print that something was skipped.
fn prints_of(text: &str) -> Vec<&str> {
    let prints = |line: &&str| line.contains("print") && line.contains("\"skipped");
    text.lines().map(str::trim).filter(prints).collect()
}

/// Lines of tests that return, where nothing in the statement before has noted a skip.
fn early_ends_of(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut test: Option<(&str, usize)> = None;
    let mut is_marked = false;
    for (number, line) in lines.iter().enumerate() {
        let (code, indent) = (line.trim(), line.len() - line.trim_start().len());
        if code.starts_with("#[test]") || code.starts_with("#[tokio::test") {
            is_marked = true;
        } else if is_marked && let Some((_, after)) = code.split_once("fn ") {
            test = after.split_once('(').map(|(name, _)| (name, indent));
            is_marked = false;
        } else if let Some((name, outer)) = test {
            let returns = code.ends_with("return;") || code.contains("return }");
            // A closure's return is deeper than the block of a condition in the test's own body.
            let is_own = indent <= outer + 12;
            let before = lines[number.saturating_sub(6)..=number].join("\n");
            let noted = NOTING.iter().any(|call| before.contains(call));
            if returns && is_own && !noted && !PROGRAMS.contains(&name) {
                found.push(code);
            }
            if indent == outer && code == "}" {
                test = None;
            }
        }
    }
    found
}

#[test]
fn a_test_that_returns_without_a_word_is_found() {
    let silent = "#[test]\nfn a_thing_works() {\n    if missing() {\n        return;\n    }\n}\n";
    assert_eq!(early_ends_of(silent), ["return;"]);
    let noted = silent.replace("    if", "    skips::skip(\"s3\", WHY);\n    if");
    assert_eq!(early_ends_of(&noted), [""; 0]);
    assert_eq!(prints_of("println!(\"skipped: {why}\");\nlet skipped = 1;").len(), 1);
    let helper = silent.replace("#[test]\n", "");
    assert_eq!(early_ends_of(&helper), [""; 0], "what is no test may return");
}
