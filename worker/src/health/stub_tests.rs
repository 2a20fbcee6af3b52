//! The check of a GPU against a driver and an NVML that say what they are told.
//!
//! `stub.c` takes the place of libcuda and libnvidia-ml in a process of its own: the test program
//! starts itself again with the compiled stub in `LD_LIBRARY_PATH`, to run one test that does nothing
//! otherwise.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::*;
use ringmaster_words as words;

/// What is wrong with the GPU, as in `stub.c`.
const CASE: &str = "RINGMASTER_TEST_GPU";
const DEMAND: Demand = Demand { parameters: 64 << 20, state: Bytes(1 << 30), local_ranks: 1 };

/// Checks the GPU in a process with the stub; returns the verdict and what was logged.
fn check_with(case: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let stub = folder.path().join("stub.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/health/stub.c");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let compiled = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-o"])
        .args([&stub, &source])
        .output()
        .unwrap_or_else(|e| panic!("the build needs a C compiler, {compiler} does not start: {e}"));
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    // cudarc looks for the unversioned name first, which a machine with a driver may have elsewhere.
    for name in ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1"] {
        symlink(&stub, folder.path().join(name)).unwrap();
    }
    let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders =
        std::iter::once(folder.path().to_owned()).chain(std::env::split_paths(&inherited));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "health::gpu::stub_tests::stub_process", "--nocapture"])
        .env("LD_LIBRARY_PATH", std::env::join_paths(folders).unwrap())
        .env(CASE, case)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A started process: checks the stub's GPU.
#[test]
fn stub_process() {
    if std::env::var_os(CASE).is_none() {
        return;
    }
    tracing_subscriber::fmt().with_writer(std::io::stdout).with_ansi(false).init();
    match check(0, DEMAND) {
        Ok(watch) => {
            println!("verdict: fit, {} watched", if watch.is_some() { "is" } else { "is not" });
            watch.into_iter().for_each(|mut watch| (0..2).for_each(|_| watch.tell_news()));
        }
        Err(error) => println!("verdict: {}", words::chain(&error)),
    }
}

#[test]
fn a_healthy_gpu_is_named_with_what_it_has() {
    let text = check_with("fine");
    assert!(text.contains("verdict: fit, is watched"), "{text}");
    let line =
        "health: GPU 0 (0000:17:00.0, GPU-1234): 80.0 GiB of its memory free, the state takes";
    assert!(text.contains(line) && !text.contains("WARN"), "{text}");
}

#[test]
fn a_gpu_that_keeps_no_count_of_errors_is_fit() {
    let text = check_with("plain");
    assert!(text.contains("verdict: fit, is not watched") && !text.contains("WARN"), "{text}");
}

#[test]
fn a_gpu_whose_memory_lost_data_is_refused_by_name() {
    let text = check_with("ecc");
    assert!(text.contains("verdict: GPU 0 (0000:17:00.0, GPU-1234) of "), "{text}");
    assert!(text.contains("3 memory errors that ECC could not correct; drain the node"), "{text}");
}

#[test]
fn a_gpu_that_could_not_replace_a_damaged_row_is_refused() {
    let text = check_with("remap");
    assert!(text.contains("verdict: GPU 0") && text.contains("could not be replaced"), "{text}");
}

#[test]
fn a_gpu_that_waits_for_a_reset_is_fit_and_warned_of() {
    for case in ["rows", "pages"] {
        let text = check_with(case);
        assert!(text.contains("verdict: fit"), "{case}: {text}");
        assert!(text.contains("WARN") && text.contains("at its next reset"), "{case}: {text}");
    }
}

#[test]
fn a_gpu_that_is_full_is_refused_with_the_figures() {
    let text = check_with("full");
    assert!(text.contains("verdict: not enough GPU 0"), "{text}");
    assert!(text.contains("100.0 MiB free, and the training state takes 1.2 GiB"), "{text}");
}

#[test]
fn critical_errors_are_told_once() {
    let text = check_with("xid");
    assert_eq!(text.matches("reports a critical error").count(), 1, "{text}");
    assert!(text.contains("xid=79"), "{text}");
}
