//! `ringmaster-bench loss` as people run it: real processes, memory as the kernel counts it.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringmaster-bench"))
        .arg("loss")
        .args(arguments)
        .output()
        .unwrap()
}

fn measured(arguments: &[&str]) -> Value {
    let output = bench(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(result: &Value, field: &str) -> f64 {
    result[field].as_f64().unwrap_or_else(|| panic!("{field} in {result}"))
}

/// Sub-chunks of 128 rows of 256 f32 take 128 KiB, a tile of 256 × 128 as much.
const SIZES: [&str; 6] =
    ["--dim=256", "--sub-chunk=128", "--tile-rows=256", "--steps=1", "--kind", "siglip"];

#[test]
fn memory_of_the_ring_loss_grows_neither_with_the_ranks_nor_with_their_rows() {
    let peak = |ranks: &str, rows: &str| {
        let mut arguments = SIZES.to_vec();
        arguments.extend(["--ranks", ranks, "--local-batch", rows]);
        number(&measured(&arguments), "peak_bytes")
    };
    let smallest = peak("2", "1024");
    // Five sub-chunks and a tile, and what threads and allocator add. All pairs would take 8 MiB.
    assert!(smallest < 2.5 * f64::from(1 << 20), "{smallest} bytes");
    for (ranks, rows) in [("4", "1024"), ("8", "1024"), ("2", "4096")] {
        let larger = peak(ranks, rows);
        assert!(larger < smallest + 0.5 * f64::from(1 << 20), "{larger} after {smallest} bytes");
    }
}

#[test]
fn the_travelling_softmax_loss_holds_no_gathered_text_and_computes_the_same() {
    let arguments = |exchange| {
        [
            "--kind=infonce",
            "--dim=256",
            "--ranks=4",
            "--local-batch=1024",
            "--sub-chunk=128",
            "--tile-rows=256",
            "--steps=1",
            exchange,
        ]
    };
    let gathered = measured(&arguments("--exchange=all_gather"));
    let travelling = measured(&arguments("--exchange=ring"));
    // All text of 4 ranks alone takes 4 MiB.
    // and four ranks' rows of its gradient as much again.
    let mebibytes = number(&gathered, "peak_bytes") / f64::from(1 << 20);
    assert!((4.0..10.0).contains(&mebibytes), "{gathered}");
    assert!(number(&travelling, "peak_bytes") < 2.5 * f64::from(1 << 20), "{travelling}");
    for field in ["loss", "grad_abs_x", "grad_abs_y", "grad_scale"] {
        let (a, b) = (number(&gathered, field), number(&travelling, field));
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{field}: {a} and {b}");
    }
}

#[test]
fn arguments_that_do_not_fit_together_are_refused() {
    let output = bench(&["--kind=siglip", "--ranks=3", "--local-batch=4", "--dim=8", "--group=2"]);
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--group 2 does not divide --ranks 3"), "{stderr}");
}
