//! `bench loss`: what a loss costs in time and memory, and what it computes.
//!
//! The inputs are the same anywhere: `x[i,j] = sin(0.37 i + 1.3 j + 0.11 i j)` and
//! `y[i,j] = cos(0.23 i − 0.7 j + 0.13 i j)` over the global row i and the column j, in f64, rows
//! L2-normalised, then cast. The printed sums of the gradients therefore compare with any other
//! implementation.

mod floor;
mod inputs;
mod rank;

use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use self::rank::Measured;
use crate::{median, processes};

/// The loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Pairwise sigmoid loss round the ring.
    Siglip,
    /// One-sided softmax loss.
    Infonce,
}

/// dtype of the embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// bfloat16; products are summed in f32.
    Bf16,
}

/// Where the loss is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// Host memory, tcp between the ranks.
    Cpu,
    /// A GPU.
    Cuda,
}

/// How InfoNCE's text comes to all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Exchange {
    /// Every rank holds all of it.
    #[value(name = "all_gather")]
    AllGather,
    /// It travels round the ring; nobody holds all of it.
    Ring,
}

/// The command line of `bench loss`.
#[derive(Debug, Clone, clap::Args)]
pub struct LossArgs {
    /// Loss to measure.
    #[arg(long)]
    kind: Kind,
    /// Rank processes.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    ranks: u32,
    /// Rows of every rank.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    local_batch: u32,
    /// Embedding width.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    dim: u32,
    /// dtype of the embeddings.
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
    /// Device of every rank.
    #[arg(long, default_value = "cpu")]
    device: DeviceKind,
    /// Measured steps; seconds are their median.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: u32,
    /// t′, the logarithm of the scale. Default: siglip ln 10, infonce ln(1/0.07).
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    log_scale: Option<f64>,
    /// β of siglip.
    #[arg(long, default_value_t = -10.0, allow_negative_numbers = true, value_parser = finite)]
    logit_bias: f64,
    /// How far rows stand apart: 1 as described above; towards 0 every row comes to look like the
    /// first (row i becomes row 0 + spread × (row i − row 0), normalised again).
    #[arg(long, default_value_t = 1.0, value_parser = finite)]
    spread: f64,
    /// How infonce's text comes to all ranks.
    #[arg(long, default_value = "all_gather")]
    exchange: Exchange,
    /// Bytes infonce may keep of its dot products instead of computing them twice.
    #[arg(long, default_value_t = 0)]
    logits_budget: u64,
    /// Text rows that travel together; 0: choose.
    #[arg(long, default_value_t = 0)]
    sub_chunk: u32,
    /// Image rows of a tile; 0: choose.
    #[arg(long, default_value_t = 0)]
    tile_rows: u32,
    /// Ranks that stand together in the ring.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    group: u32,
    /// With --device cuda: all ranks on the first GPU. NCCL then connects them over sockets.
    #[arg(long)]
    share_gpu: bool,
    /// libtorch threads of every rank.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
}

fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(_) => Err("must be finite".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl LossArgs {
    fn log_scale(&self) -> f64 {
        self.log_scale.unwrap_or(match self.kind {
            Kind::Siglip => 10_f64.ln(),
            Kind::Infonce => (1.0_f64 / 0.07).ln(),
        })
    }

    /// The same arguments for a rank process.
    fn for_child(&self) -> Vec<String> {
        let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
            value().map_or_else(String::new, |value| value.get_name().to_owned())
        };
        let mut arguments = vec![
            "loss".to_owned(),
            format!("--kind={}", name(&|| self.kind.to_possible_value())),
            format!("--ranks={}", self.ranks),
            format!("--local-batch={}", self.local_batch),
            format!("--dim={}", self.dim),
            format!("--dtype={}", name(&|| self.dtype.to_possible_value())),
            format!("--device={}", name(&|| self.device.to_possible_value())),
            format!("--steps={}", self.steps),
            format!("--log-scale={:?}", self.log_scale()),
            format!("--logit-bias={:?}", self.logit_bias),
            format!("--spread={:?}", self.spread),
            format!("--exchange={}", name(&|| self.exchange.to_possible_value())),
            format!("--logits-budget={}", self.logits_budget),
            format!("--sub-chunk={}", self.sub_chunk),
            format!("--tile-rows={}", self.tile_rows),
            format!("--group={}", self.group),
            format!("--threads={}", self.threads),
        ];
        if self.share_gpu {
            arguments.push("--share-gpu".to_owned());
        }
        arguments
    }
}

/// Runs the bench and prints its result as one line of JSON; as a rank process, runs that rank.
///
/// # Errors
/// Arguments that do not fit together, or a rank that failed.
pub fn run(args: &LossArgs) -> anyhow::Result<()> {
    let gathers = args.kind == Kind::Infonce && args.exchange == Exchange::AllGather;
    if gathers && args.group != 1 {
        bail!("--group {} needs --exchange ring: a gathered loss has no ring", args.group);
    }
    if !gathers && args.logits_budget != 0 {
        bail!("--logits-budget is for --kind infonce --exchange all_gather");
    }
    if !args.ranks.is_multiple_of(args.group) {
        bail!("--group {} does not divide --ranks {}", args.group, args.ranks);
    }
    if processes::is_child() {
        return rank::run(args);
    }
    let (ranks, threads) = (args.ranks as usize, args.threads as usize);
    let ranks = processes::run(ranks, threads, args.share_gpu, &args.for_child())?;
    let ranks: Vec<Measured> =
        ranks.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
    let line = serde_json::to_string(&result(args, &ranks)?)? + "\n";
    std::io::stdout().lock().write_all(line.as_bytes()).context("cannot write the result")
}

/// Joins what the ranks measured: a step lasts as long as on its slowest rank, sums are over all.
fn result(args: &LossArgs, ranks: &[Measured]) -> anyhow::Result<Value> {
    let first = ranks.first().context("no rank reported")?;
    if let Some(odd) = ranks.iter().find(|rank| rank.loss.total_cmp(&first.loss).is_ne()) {
        bail!("ranks disagree on the loss: {} and {}", first.loss, odd.loss);
    }
    let slowest = |of: fn(&Measured) -> &Vec<f64>| {
        let steps = of(first).len();
        let each = (0..steps).map(|step| ranks.iter().map(|r| of(r)[step]).fold(0.0, f64::max));
        median(each.collect())
    };
    let sum = |of: fn(&Measured) -> f64| ranks.iter().map(of).sum::<f64>();
    let seconds = slowest(|r| &r.seconds);
    let floor = slowest(|r| &r.floor_seconds);
    let dense =
        (!first.dense_floor_seconds.is_empty()).then(|| slowest(|r| &r.dense_floor_seconds));
    Ok(json!({
        "kind": args.kind.to_possible_value().map(|v| v.get_name().to_owned()),
        "exchange": match args.kind {
            Kind::Siglip => Some("ring".to_owned()),
            Kind::Infonce => args.exchange.to_possible_value().map(|v| v.get_name().to_owned()),
        },
        "ranks": args.ranks,
        "local_batch": args.local_batch,
        "dim": args.dim,
        "dtype": args.dtype.to_possible_value().map(|v| v.get_name().to_owned()),
        "device": args.device.to_possible_value().map(|v| v.get_name().to_owned()),
        "threads": args.threads,
        "sub_chunk": first.sub_chunk,
        "tile_rows": first.tile_rows,
        "group": args.group,
        "steps": args.steps,
        "log_scale": args.log_scale(),
        "seconds": seconds,
        "floor_seconds": floor,
        "dense_floor_seconds": dense,
        "seconds_over_floor": seconds / floor,
        "peak_bytes": ranks.iter().map(|r| r.peak_bytes).max().flatten(),
        "loss": first.loss,
        "grad_abs_x": sum(|r| r.grad_abs_x),
        "grad_abs_y": sum(|r| r.grad_abs_y),
        "grad_wave_x": sum(|r| r.grad_wave_x),
        "grad_wave_y": sum(|r| r.grad_wave_y),
        "grad_scale": first.grad_scale,
        "grad_bias": first.grad_bias,
    }))
}
