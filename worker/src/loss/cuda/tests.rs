//! The kernels: compiled by NVRTC where there is one, run on the host by a small emulation, and run
//! on the GPU where there is one.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use crate::ffi::cuda::test_device;

/// One launch and its inputs.
#[derive(Clone)]
struct Case {
    rows: usize,
    columns: usize,
    stride: usize,
    scale: f32,
    bias: f32,
    /// (row, column, length)
    diagonal: (usize, usize, usize),
    labels: Option<(Vec<i64>, Vec<i64>)>,
    /// Log-sum-exps of rows and columns: InfoNCE instead of the sigmoid loss.
    log_sums: Option<(Vec<f32>, Vec<f32>)>,
    logits: Vec<f32>,
}

/// What a launch leaves.
struct Left {
    weights: Vec<f32>,
    bf16: Vec<u16>,
    sums: [f64; 3],
}

impl Case {
    fn new(rows: usize, columns: usize, stride: usize) -> Self {
        let logits = (0..rows * stride).map(|i| (0.37 * i as f64 + 0.1).sin() as f32).collect();
        Self {
            rows,
            columns,
            stride,
            scale: 10.0,
            bias: -10.0,
            diagonal: (0, 0, 0),
            labels: None,
            log_sums: None,
            logits,
        }
    }

    fn is_positive(&self, row: usize, column: usize) -> bool {
        if let Some((rows, columns)) = &self.labels {
            return rows[row] == columns[column];
        }
        let (first, start, length) = self.diagonal;
        row >= first && row - first < length && column == start + (row - first)
    }

    /// The definition, in f64: weights (padding untouched) and the three sums.
    fn expected(&self) -> (Vec<f64>, [f64; 3]) {
        let mut weights: Vec<f64> = self.logits.iter().copied().map(f64::from).collect();
        let mut sums = [0.0; 3];
        for row in 0..self.rows {
            for column in 0..self.columns {
                let value = &mut weights[row * self.stride + column];
                let product = f64::from(self.scale) * *value;
                let positive = self.is_positive(row, column);
                let (weight, terms) = match &self.log_sums {
                    None => {
                        let s = product + f64::from(self.bias);
                        let zs = if positive { s } else { -s };
                        let weight = (if positive { -1.0 } else { 1.0 }) / (1.0 + zs.exp());
                        let log_sigmoid = -((-zs).max(0.0) + (-zs.abs()).exp().ln_1p());
                        (weight, [log_sigmoid, weight * product, weight])
                    }
                    Some((rows, columns)) => {
                        let weight = (product - f64::from(rows[row])).exp()
                            + (product - f64::from(columns[column])).exp()
                            - if positive { 2.0 } else { 0.0 };
                        (weight, [weight * product, if positive { product } else { 0.0 }, weight])
                    }
                };
                *value = weight;
                for (sum, term) in sums.iter_mut().zip(terms) {
                    *sum += term;
                }
            }
        }
        (weights, sums)
    }

    fn check(&self, left: &Left, context: &str) {
        let (weights, sums) = self.expected();
        for (i, (actual, expected)) in left.weights.iter().zip(&weights).enumerate() {
            let error = (f64::from(*actual) - expected).abs();
            // The logit itself carries an f32 rounding of up to scale + |bias|.
            let tolerance =
                1e-5 * expected.abs() + 1e-30 + f64::from(u8::from(self.log_sums.is_some())) * 2e-6;
            assert!(error <= tolerance, "{context}: weight {i}: {actual} for {expected}");
            if i % self.stride < self.columns {
                assert_eq!(left.bf16[i], half::bf16::from_f32(*actual).to_bits(), "{context}: {i}");
            } else {
                assert_eq!(left.bf16[i], 0, "{context}: padding {i}");
            }
        }
        let magnitude: f64 = weights.iter().map(|w| w.abs()).sum::<f64>().max(1e-3);
        for (k, (actual, expected)) in left.sums.iter().zip(sums).enumerate() {
            let error = (actual - expected).abs() / expected.abs().max(magnitude * 1e-2);
            assert!(error < 5e-6, "{context}: sum {k}: {actual} for {expected}");
        }
    }
}

/// Tiles that are even, odd, narrow, tall, strided and misaligned; with no, some and all positives.
fn cases() -> Vec<(String, Case)> {
    let mut cases = Vec::new();
    for (rows, columns, stride) in
        [(1, 1, 1), (3, 5, 5), (8, 64, 64), (17, 130, 131), (5, 1030, 1032), (70, 7, 8)]
    {
        let case = Case::new(rows, columns, stride);
        let shape = format!("[{rows}, {columns}] of {stride}");
        let length = rows.min(columns) - rows.min(columns) / 2;
        let diagonal = (rows - length, columns - length, length);
        cases.push((format!("{shape}, no positives"), case.clone()));
        cases.push((format!("{shape}, diagonal"), Case { diagonal, ..case.clone() }));
        let label = |i: usize, of: i64| i as i64 % of - 1;
        let labels = Some((
            (0..rows).map(|i| label(i, 3)).collect(),
            (0..columns).map(|j| label(j, 4)).collect(),
        ));
        let steep = Case { labels, scale: 100.0, bias: 0.5, ..case.clone() };
        cases.push((format!("{shape}, labels, scale 100"), steep));
        let log_sums = Some((
            (0..rows).map(|i| 10.0 + i as f32 * 0.1).collect(),
            (0..columns).map(|j| 11.0 - j as f32 * 0.001).collect(),
        ));
        cases.push((format!("{shape}, infonce"), Case { log_sums, diagonal, bias: 0.0, ..case }));
    }
    cases
}

/// Compiles the kernels for the host and returns the program.
fn emulator(folder: &Path) -> std::path::PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/loss/cuda");
    let program = folder.join("emulate");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-pthread", "-o"])
        .arg(&program)
        .arg(sources.join("emulate.cpp"))
        .output()
        .unwrap_or_else(|e| {
            panic!("the build needs a C++ compiler, {compiler} does not start: {e}")
        });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

fn emulate(program: &Path, case: &Case, launches: i32) -> (Left, u32) {
    let Geometry { grid, block } = Geometry::of(case.rows as u32, case.columns as u32);
    let mut input = Vec::new();
    let (row, column, length) = case.diagonal;
    for number in [
        i32::from(case.log_sums.is_some()),
        case.rows as i32,
        case.columns as i32,
        case.stride as i32,
        grid.0 as i32,
        grid.1 as i32,
        block.0 as i32,
        block.1 as i32,
        row as i32,
        column as i32,
        length as i32,
        i32::from(case.labels.is_some()),
        i32::from(case.stride.is_multiple_of(4)),
        launches,
    ] {
        input.extend(number.to_ne_bytes());
    }
    let floats = |input: &mut Vec<u8>, values: &[f32]| {
        input.extend(values.iter().flat_map(|v| v.to_ne_bytes()));
    };
    floats(&mut input, &[case.scale, case.bias]);
    floats(&mut input, &case.logits);
    for labels in case.labels.iter().flat_map(|(rows, columns)| [rows, columns]) {
        input.extend(labels.iter().flat_map(|l| l.to_ne_bytes()));
    }
    for sums in case.log_sums.iter().flat_map(|(rows, columns)| [rows, columns]) {
        floats(&mut input, sums);
    }
    let mut child =
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let elements = case.logits.len();
    let (weights, rest) = output.stdout.split_at(4 * elements);
    let (bf16, rest) = rest.split_at(2 * elements);
    let (sums, finished) = rest.split_at(24);
    let sums: Vec<f64> = bytemuck::pod_collect_to_vec(sums);
    let left = Left {
        weights: bytemuck::pod_collect_to_vec(weights),
        bf16: bytemuck::pod_collect_to_vec(bf16),
        sums: sums.try_into().unwrap(),
    };
    (left, u32::from_ne_bytes(finished.try_into().unwrap()))
}

#[test]
fn the_kernels_run_on_the_host_equal_the_definition_in_f64() {
    let folder = tempfile::tempdir().unwrap();
    let program = emulator(folder.path());
    for (name, case) in cases() {
        let (left, finished) = emulate(&program, &case, 1);
        case.check(&left, &name);
        assert_eq!(finished, 0, "{name}: the count of blocks is ready for the next launch");
    }
}

#[test]
fn a_second_launch_adds_to_the_sums_and_has_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let program = emulator(folder.path());
    let case = Case { diagonal: (1, 1, 3), ..Case::new(5, 2100, 2100) };
    assert!(Geometry::of(5, 2100).grid.0 > 1, "several blocks side by side");
    let (once, _) = emulate(&program, &case, 1);
    let (twice, _) = emulate(&program, &case, 2);
    for (once, twice) in once.sums.iter().zip(twice.sums) {
        assert_eq!((2.0 * once).to_bits(), twice.to_bits());
    }
}

#[test]
fn extreme_logits_give_finite_weights_and_no_lost_digits() {
    let folder = tempfile::tempdir().unwrap();
    let program = emulator(folder.path());
    let mut case = Case { scale: 1.0, bias: 0.0, ..Case::new(2, 6, 6) };
    let values = [-200.0, -88.0, -30.0, 0.0, 30.0, 200.0];
    case.logits = values.iter().chain(&values).copied().collect();
    // The first row's pairs are all positives, the second's none.
    case.labels = Some((vec![1, 2], vec![1; 6]));
    let (left, _) = emulate(&program, &case, 1);
    case.check(&left, "extreme");
    assert!(left.weights[4] < 0.0, "σ(30) − 1 is not zero: {}", left.weights[4]);
}

#[test]
fn every_launch_covers_the_tile_within_its_limits() {
    for (rows, columns) in
        [(1, 1), (1, 4), (512, 256), (16_384, 16_384), (1, 1 << 30), (1 << 30, 1)]
    {
        let Geometry { grid, block } = Geometry::of(rows, columns);
        assert_eq!(block.0 * block.1, THREADS, "[{rows}, {columns}]");
        assert!(grid.0 >= 1 && grid.1 >= 1 && grid.0 * grid.1 <= MAX_BLOCKS, "{grid:?}");
    }
    // Small enough to need no loop: one thread per run.
    let geometry = Geometry::of(512, 256);
    assert_eq!(geometry, Geometry { grid: (1, 128), block: (64, 4) });
}

#[test]
fn the_kernels_compile_for_every_supported_generation_of_gpus() {
    let known = match nvrtc::known_capabilities() {
        Ok(known) => known,
        Err(error) => {
            assert!(error.to_string().contains("LD_LIBRARY_PATH"), "{error}");
            ringmaster_tests::skips::skip("nvrtc", &format!("no NVRTC: {error}"));
            return;
        }
    };
    for capability in [75, 80, 86, 89, 90, 100, 120] {
        if !known.contains(&capability) {
            println!("sm_{capability}: unknown to this NVRTC");
            continue;
        }
        let machine = nvrtc::compile(PROGRAM, SOURCE, Target::Machine { capability }).unwrap();
        let ptx = nvrtc::compile(PROGRAM, SOURCE, Target::Ptx { capability }).unwrap();
        let text = String::from_utf8_lossy(ptx.bytes()).into_owned();
        for entry in [".entry siglip_tile(", ".entry infonce_tile("] {
            assert!(text.contains(entry), "{entry} in PTX for {capability}");
        }
        // Sums have the same bits in every run only without float atomics.
        assert!(!text.contains("atom.global.add.f") && !text.contains("red.global.add.f"));
        assert_eq!(text.matches("atom.").count(), 2, "one count of blocks per kernel");
        assert_eq!(&machine.bytes()[..4], b"\x7fELF");
        println!("sm_{capability}: {} bytes, PTX {}", machine.bytes().len(), ptx.bytes().len());
    }
}

#[test]
fn a_cpu_tensor_is_refused_and_a_missing_gpu_is_explained() {
    let error = Epilogues::for_device(Device::Cpu).unwrap_err();
    assert_eq!(error.to_string(), "the fused epilogue works on CUDA tensors, got Cpu");
    if let Err(error) = Epilogues::for_device(Device::Cuda(0)) {
        let mut chain = String::new();
        let mut next: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = next {
            chain = format!("{chain}: {error}");
            next = error.source();
        }
        assert!(chain.contains("accelerator: cpu") || chain.contains("LD_LIBRARY_PATH"), "{chain}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
    let (logits, sums) = (zeros(&[4, 6], Kind::Float), zeros(&[3], Kind::Double));
    // The checks are the same for every device; here they run on the CPU.
    let check = |logits: &Tensor, bf16: Option<&Tensor>, positives, sums: &Tensor| {
        Tile::of(Device::Cpu, logits, bf16, positives, sums).map(|tile| tile.is_some())
    };
    let none = Positives::None;
    assert!(check(&logits, None, none, &sums).unwrap());
    assert!(!check(&zeros(&[0, 6], Kind::Float), None, none, &sums).unwrap(), "nothing to do");
    let part = zeros(&[4, 10], Kind::Float).narrow(1, 0, 6);
    assert!(check(&part, None, none, &sums).unwrap(), "rows may be apart");

    let refused = |logits: &Tensor, bf16: Option<&Tensor>, positives, sums: &Tensor| {
        check(logits, bf16, positives, sums).unwrap_err().to_string()
    };
    let text = refused(&zeros(&[4, 6], Kind::Double), None, none, &sums);
    assert!(text.starts_with("logits: expected [4, 6] of Float on Cpu"), "{text}");
    let text = refused(&zeros(&[6, 4], Kind::Float).tr(), None, none, &sums);
    assert!(text.contains("contiguous rows"), "{text}");
    let text = refused(&logits, Some(&zeros(&[4, 5], Kind::BFloat16)), none, &sums);
    assert!(text.starts_with("bf16 weights: expected [4, 6]"), "{text}");
    let text = refused(&logits, None, none, &zeros(&[2], Kind::Double));
    assert!(text.starts_with("sums: expected [3] of Double"), "{text}");
    let outside = Positives::Diagonal { row: 2, column: 0, length: 3 };
    let text = refused(&logits, None, outside, &sums);
    assert_eq!(text, "positives: expected a stretch inside [4, 6], got 3 from (2, 0)");
    let (rows, columns) = (zeros(&[4], Kind::Int64), zeros(&[5], Kind::Int64));
    let labels = Positives::Labels { rows: &rows, columns: &columns };
    let text = refused(&logits, None, labels, &sums);
    assert!(text.starts_with("column labels: expected [6] of Int64"), "{text}");
}

#[test]
fn gpu_epilogues_equal_the_definition_in_f64() {
    let Some(device) = test_device() else { return };
    let epilogues = Epilogues::for_device(device).unwrap();
    let mut cases = cases();
    cases.push((
        "large".to_owned(),
        Case { diagonal: (100, 900, 700), ..Case::new(1000, 2000, 2048) },
    ));
    for (name, case) in &cases {
        let shape = [case.rows as i64, case.columns as i64];
        let stride = [case.stride as i64, 1];
        let run = || {
            let tile = Tensor::from_slice(&case.logits).to_device(device);
            let copy = Tensor::zeros_like(&tile).to_kind(Kind::BFloat16);
            let view = |t: &Tensor| t.as_strided(shape, stride, 0);
            let sums = Tensor::zeros([3], (Kind::Double, device));
            let labels = case.labels.as_ref().map(|(rows, columns)| {
                let on_device = |l: &[i64]| Tensor::from_slice(l).to_device(device);
                (on_device(rows), on_device(columns))
            });
            let (row, column, length) = case.diagonal;
            let positives = match &labels {
                Some((rows, columns)) => Positives::Labels { rows, columns },
                None => Positives::Diagonal { row, column, length },
            };
            let (scale, bias) = (f64::from(case.scale), f64::from(case.bias));
            let (tile_view, copy_view) = (view(&tile), view(&copy));
            match &case.log_sums {
                None => epilogues
                    .siglip_tile(&tile_view, scale, bias, positives, Some(&copy_view), &sums)
                    .unwrap(),
                Some((rows, columns)) => {
                    let on_device = |l: &[f32]| Tensor::from_slice(l).to_device(device);
                    let (rows, columns) = (on_device(rows), on_device(columns));
                    epilogues
                        .infonce_tile(
                            &tile_view,
                            scale,
                            &rows,
                            &columns,
                            positives,
                            Some(&copy_view),
                            &sums,
                        )
                        .unwrap();
                }
            }
            let sums: Vec<f64> = Vec::try_from(sums.to_device(Device::Cpu)).unwrap();
            let bits = copy.view_dtype(Kind::Int16).to_device(Device::Cpu);
            let bits: Vec<i16> = Vec::try_from(bits).unwrap();
            Left {
                weights: Vec::try_from(tile.to_device(Device::Cpu)).unwrap(),
                bf16: bits.into_iter().map(|b| b as u16).collect(),
                sums: sums.try_into().unwrap(),
            }
        };
        let (first, second) = (run(), run());
        case.check(&first, name);
        let bits = |left: &Left| left.sums.map(f64::to_bits);
        assert_eq!(bits(&first), bits(&second), "{name}: the same bits in every run");
    }
}
