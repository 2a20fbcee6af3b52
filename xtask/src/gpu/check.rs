//! `cargo xtask gpu-check`: runs every claim about GPUs and writes one report.
//!
//! Without a GPU each claim is "not run" with the reason, and that is no failure: a report says what
//! was seen, and a claim nobody ran is not one that held.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::bundle::{self, Programs};
use super::machine::{Probe, library_path};
use super::report::{Claim, Outcome, Report};
use crate::console;
use crate::skips::REQUIRE;
use crate::workspace::Workspace;

/// Arguments of `cargo xtask gpu-check`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the report goes; default: docs/gpu/NAME.json, NAME being the GPU's or no-gpu.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The interpreter whose PyTorch is used.
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: String,
    /// Use the programs of this bundle, made by `cargo xtask gpu-bundle`, instead of building them.
    #[arg(long, value_name = "FOLDER")]
    bundle: Option<PathBuf>,
}

/// How a claim is put to the test.
enum Trial {
    /// A unit test of the worker.
    Test(&'static str),
    /// Both losses of one kind, same inputs, same run.
    Compare { kind: &'static str },
    /// A batch of this many rows, once.
    Large { batch: u64 },
}

/// Local batch and width of the comparison.
const BATCH: &str = "16384";
const DIM: &str = "768";
/// Largest relative difference from the loss OpenCLIP computes in f32 from the same bf16 inputs.
const TOLERANCE: f64 = 1e-4;

const CLAIMS: [(&str, &str, Trial, u64); 9] = [
    (
        "epilogue",
        "the fused kernels equal their definition in f64, with the same bits in every run",
        Trial::Test("loss::cuda::tests::gpu_epilogues_equal_the_definition_in_f64"),
        300,
    ),
    (
        "nccl-contract",
        "NCCL keeps the contract of collectives between two processes that share a GPU",
        Trial::Test(
            "collective::nccl::tests::gpu_contract_holds_between_processes_that_share_a_gpu",
        ),
        600,
    ),
    (
        "nccl-losses",
        "both losses over NCCL, even and uneven shards, equal the dense f64 reference to 1e-5",
        Trial::Test(
            "collective::nccl::tests::gpu_losses_are_exact_between_processes_that_share_a_gpu",
        ),
        600,
    ),
    (
        "nccl-abort",
        "a rank that waits in an NCCL collective for a peer that never comes is woken by an abort",
        Trial::Test("collective::nccl::tests::gpu_abort_wakes_a_rank_whose_peer_never_comes"),
        300,
    ),
    (
        "nccl-death",
        "the death of a peer ends an NCCL collective long before any deadline",
        Trial::Test("collective::nccl::tests::gpu_death_of_a_peer_is_noticed"),
        300,
    ),
    (
        "siglip-speed",
        "sigmoid loss at b = 16384, d = 768, bf16: equal to OpenCLIP's, in less time and memory",
        Trial::Compare { kind: "siglip" },
        600,
    ),
    (
        "infonce-speed",
        "InfoNCE at b = 16384, d = 768, bf16: equal to OpenCLIP's, in less time and memory",
        Trial::Compare { kind: "infonce" },
        600,
    ),
    (
        "siglip-batch-307200",
        "the sigmoid loss of 307,200 rows runs on one GPU",
        Trial::Large { batch: 307_200 },
        600,
    ),
    (
        "siglip-batch-1048576",
        "the sigmoid loss of 1,048,576 rows runs on one GPU",
        Trial::Large { batch: 1_048_576 },
        900,
    ),
];

/// Runs all claims. The exit code is 0 when none failed.
///
/// `workspace` is needed only without a bundle.
pub(crate) fn run(
    workspace: impl FnOnce() -> Result<Workspace>,
    options: &Options,
) -> Result<ExitCode> {
    console::step("looking for a GPU and PyTorch 2.11");
    let probe = Probe::of(&options.python);
    let (revision, out, programs) = match &options.bundle {
        Some(folder) => {
            let out = options.out.clone().unwrap_or_else(|| PathBuf::from("gpu-report.json"));
            (bundle::revision_of(folder)?, out, bundle::programs(folder))
        }
        None => {
            let workspace = workspace()?;
            let name = file_name(probe.machine.gpu.as_deref());
            let default = workspace.root().join("docs/gpu").join(name);
            let out = options.out.clone().unwrap_or(default);
            // Nothing is built for a machine that could not run it.
            let programs = match &probe.libtorch {
                Ok(_) => bundle::build(&workspace)?,
                Err(_) => bundle::in_tree(&workspace),
            };
            (bundle::revision(workspace.root()), out, programs)
        }
    };
    let mut report = Report::new(revision, probe.machine);
    for (name, claim, trial, limit) in &CLAIMS {
        let began = Instant::now();
        let limit = Duration::from_secs(*limit);
        let verdict = match &probe.libtorch {
            Err(why) => Verdict::not_run(why.clone()),
            Ok(torch) => {
                console::step(claim);
                let runner = Runner { programs: &programs, torch, python: &options.python, limit };
                runner.run(trial)
            }
        };
        let ran = verdict.result != Outcome::NotRun;
        report.claims.push(Claim {
            name: (*name).to_owned(),
            claim: (*claim).to_owned(),
            result: verdict.result,
            reason: verdict.reason,
            numbers: verdict.numbers,
            seconds: ran.then(|| (began.elapsed().as_secs_f64() * 10.0).round() / 10.0),
        });
    }
    report.write(&out)?;
    report.print();
    console::note(&format!("written to {}", out.display()));
    Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Name of a report: the GPU's in lower case, words joined by dashes.
fn file_name(gpu: Option<&str>) -> String {
    let name = gpu.unwrap_or("no gpu").to_lowercase();
    let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    format!("{}.json", words.join("-"))
}

/// What a trial came to.
struct Verdict {
    result: Outcome,
    reason: Option<String>,
    numbers: Option<Value>,
}

impl Verdict {
    fn passed(numbers: Option<Value>) -> Self {
        Self { result: Outcome::Passed, reason: None, numbers }
    }

    fn failed(reason: impl Into<String>, numbers: Option<Value>) -> Self {
        Self { result: Outcome::Failed, reason: Some(reason.into()), numbers }
    }

    fn not_run(reason: String) -> Self {
        Self { result: Outcome::NotRun, reason: Some(reason), numbers: None }
    }
}

/// A machine that can run the trials.
struct Runner<'a> {
    programs: &'a Programs,
    torch: &'a Path,
    python: &'a str,
    limit: Duration,
}

impl Runner<'_> {
    fn run(&self, trial: &Trial) -> Verdict {
        let outcome = match trial {
            Trial::Test(name) => self.test(name),
            Trial::Compare { kind } => self.compare(kind),
            Trial::Large { batch } => self.large(*batch),
        };
        outcome.unwrap_or_else(|error| Verdict::failed(format!("{error:#}"), None))
    }

    /// One unit test in a process of its own: libtorch takes its CUDA half only before its first use.
    fn test(&self, name: &str) -> Result<Verdict> {
        let mut command = self.command(&self.programs.tests);
        command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
        command.env(REQUIRE, "gpu");
        let ran = run_within(&mut command, self.limit)?;
        let numbers = measured(&ran.output);
        if !ran.output.contains("1 passed") || !ran.success {
            return Ok(Verdict::failed(ran.last_words(), numbers));
        }
        Ok(Verdict::passed(numbers))
    }

    fn compare(&self, kind: &str) -> Result<Verdict> {
        let ours = match self.bench(kind, BATCH, "20")? {
            Ok(ours) => ours,
            Err(verdict) => return Ok(verdict),
        };
        let mut command = self.command(Path::new(self.python));
        command.arg(&self.programs.script);
        command.args(["--kind", kind, "--batch", BATCH, "--dim", DIM, "--steps", "20"]);
        if let Some(openclip) = &self.programs.openclip {
            command.arg("--openclip").arg(openclip);
        }
        let ran = run_within(&mut command, self.limit)?;
        let Some(theirs) = last_json(&ran.output).filter(|_| ran.success) else {
            let numbers = json!({ "ringmaster": ours });
            return Ok(Verdict::failed(
                format!("OpenCLIP's loss: {}", ran.last_words()),
                Some(numbers),
            ));
        };
        let doubts = weigh(&ours, &theirs);
        let numbers = Some(json!({ "ringmaster": ours, "openclip": theirs }));
        if doubts.is_empty() {
            return Ok(Verdict::passed(numbers));
        }
        Ok(Verdict::failed(doubts.join("; "), numbers))
    }

    fn large(&self, batch: u64) -> Result<Verdict> {
        let ours = match self.bench("siglip", &batch.to_string(), "1")? {
            Ok(ours) => ours,
            Err(verdict) => return Ok(verdict),
        };
        let finite = ours["loss"].as_f64().is_some_and(f64::is_finite);
        if finite {
            return Ok(Verdict::passed(Some(ours)));
        }
        Ok(Verdict::failed("the loss is not finite", Some(ours)))
    }

    /// Runs our own bench and returns its line, or the verdict where there is none.
    fn bench(&self, kind: &str, batch: &str, steps: &str) -> Result<Result<Value, Verdict>> {
        let mut command = self.command(&self.programs.bench);
        command.args(["loss", "--kind", kind, "--ranks", "1", "--local-batch", batch]);
        command.args(["--dim", DIM, "--dtype", "bf16", "--device", "cuda", "--steps", steps]);
        let ran = run_within(&mut command, self.limit)?;
        if ran.output.contains("unrecognized subcommand") {
            let why = "this ringmaster-bench has no `loss`";
            return Ok(Err(Verdict::not_run(why.to_owned())));
        }
        match last_json(&ran.output).filter(|_| ran.success) {
            Some(line) => Ok(Ok(line)),
            None => Ok(Err(Verdict::failed(ran.last_words(), None))),
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", library_path(self.torch)).stdin(Stdio::null());
        command
    }
}

/// Reads lines such as "abort: 0.003 s", in which tests say what they measured.
fn measured(output: &str) -> Option<Value> {
    let mut numbers = serde_json::Map::new();
    for line in output.lines() {
        let Some((name, rest)) = line.trim().split_once(": ") else { continue };
        let seconds = rest.split_once(" s").and_then(|(number, _)| number.parse::<f64>().ok());
        if let Some(seconds) = seconds {
            numbers.insert(format!("{name}_seconds"), json!(seconds));
        }
    }
    (!numbers.is_empty()).then_some(Value::Object(numbers))
}

/// Returns in which numbers our loss misses what the claim says of it.
fn weigh(ours: &Value, theirs: &Value) -> Vec<String> {
    let mut doubts = Vec::new();
    let number = |value: &Value, name: &str| value[name].as_f64().unwrap_or(f64::NAN);
    let (loss, exact) = (number(ours, "loss"), number(&theirs["exact"], "loss"));
    let difference = ((loss - exact) / exact).abs();
    if difference.is_nan() || difference > TOLERANCE {
        doubts.push(format!("loss {loss} differs from {exact}, OpenCLIP's in f32"));
    }
    for version in ["eager", "compiled"] {
        let other = &theirs[version];
        if let Some(error) = other["error"].as_str() {
            doubts.push(format!("OpenCLIP's {version} loss did not run: {error}"));
            continue;
        }
        for (name, unit) in [("seconds", "s"), ("peak_bytes", "bytes")] {
            let (mine, other) = (number(ours, name), number(other, name));
            // Written so that a missing number is a doubt, too.
            let less = mine < other;
            if !less {
                doubts.push(format!("{name}: {mine} {unit}, OpenCLIP's {version} loss {other}"));
            }
        }
    }
    doubts
}

/// Returns the last line that is a JSON object.
fn last_json(output: &str) -> Option<Value> {
    let mut lines = output.lines().rev().map(str::trim).filter(|line| line.starts_with('{'));
    lines.find_map(|line| serde_json::from_str(line).ok())
}

/// What a program left.
struct Ran {
    success: bool,
    /// Standard output, then standard error.
    output: String,
    /// How it ended.
    status: String,
}

impl Ran {
    /// The line that most likely says what went wrong.
    fn last_words(&self) -> String {
        let lines: Vec<&str> =
            self.output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let blames = |line: &&&str| {
            ["error", "Error", "panicked", "no GPU"].iter().any(|word| line.contains(word))
        };
        let telling = lines.iter().find(blames).or(lines.last()).copied().unwrap_or_default();
        format!("{}: {telling}", self.status)
    }
}

/// Runs a program to its end, or kills it at the limit.
fn run_within(command: &mut Command, limit: Duration) -> Result<Ran> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("the output of {name} was not captured");
    };
    let readers = [read_all(out), read_all(err)];
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {name}"))? {
            break status.to_string();
        }
        if began.elapsed() > limit {
            child
                .kill()
                .and_then(|()| child.wait())
                .with_context(|| format!("cannot kill {name}"))?;
            break format!("killed after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let output: Vec<String> =
        readers.into_iter().map(|reader| reader.join().unwrap_or_default()).collect();
    Ok(Ran { success: status == "exit status: 0", output: output.join("\n"), status })
}

fn read_all(mut source: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still worth showing.
        let _ = source.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn without_pytorch_every_claim_is_not_run_and_the_report_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        std::fs::write(bundle.join("revision"), "abc\n").unwrap();
        let out = folder.path().join("deep/report.json");
        let options = Options {
            out: Some(out.clone()),
            // No interpreter, so no PyTorch, whatever this machine has.
            python: folder.path().join("no-python").to_string_lossy().into_owned(),
            bundle: Some(bundle),
        };
        let code = run(|| bail!("no workspace is needed"), &options).unwrap();
        assert_eq!(code, ExitCode::SUCCESS, "what was not run did not fail");
        let report: Report = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
        assert_eq!((report.version, report.revision.as_str()), (1, "abc"));
        assert_eq!(report.claims.len(), CLAIMS.len());
        for claim in report.claims {
            assert_eq!(claim.result, Outcome::NotRun, "{}", claim.name);
            assert!(!claim.reason.unwrap().is_empty() && claim.numbers.is_none());
        }
    }

    #[test]
    fn a_claim_holds_only_where_we_are_equal_faster_and_smaller_than_both() {
        let ours = json!({ "loss": 1.0, "seconds": 0.01, "peak_bytes": 100 });
        let slower = json!({ "seconds": 0.02, "peak_bytes": 200 });
        let exact = json!({ "loss": 1.00001 });
        let theirs = json!({ "exact": exact, "eager": slower, "compiled": slower });
        assert!(weigh(&ours, &theirs).is_empty());

        let faster = json!({ "seconds": 0.005, "peak_bytes": 200 });
        let doubts = weigh(&ours, &json!({ "exact": exact, "eager": slower, "compiled": faster }));
        assert_eq!(doubts, ["seconds: 0.01 s, OpenCLIP's compiled loss 0.005"]);
        let broken = json!({ "error": "no C compiler" });
        let doubts = weigh(&ours, &json!({ "exact": exact, "eager": slower, "compiled": broken }));
        assert_eq!(doubts, ["OpenCLIP's compiled loss did not run: no C compiler"]);
        assert_eq!(weigh(&json!({}), &theirs).len(), 5, "missing numbers speak against us");
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo begun; exec sleep 600"]);
        let ran = run_within(&mut command, Duration::from_millis(200)).unwrap();
        assert!(!ran.success && ran.status.starts_with("killed after"), "{}", ran.status);
        let mut command = Command::new("sh");
        command.args(["-c", "echo '{\"a\": 1}'; echo note; exit 3"]);
        let ran = run_within(&mut command, Duration::from_secs(60)).unwrap();
        assert!(!ran.success && ran.status.contains('3'), "{}", ran.status);
        assert_eq!(last_json(&ran.output), Some(json!({ "a": 1 })));
    }

    #[test]
    fn what_tests_measured_is_read_from_their_lines() {
        let output = "running 1 test\nabort: 0.003 s\ndeath: 1.5 s: lost\nabort: rank 0 is done\n";
        let numbers = json!({ "abort_seconds": 0.003, "death_seconds": 1.5 });
        assert_eq!(measured(output), Some(numbers));
        assert_eq!(measured("test result: ok. 1 passed; finished in 1.2s"), None);
    }

    #[test]
    fn reports_are_named_after_the_gpu() {
        assert_eq!(file_name(Some("NVIDIA X100 80GB (SXM)")), "nvidia-x100-80gb-sxm.json");
        assert_eq!(file_name(None), "no-gpu.json");
    }
}
