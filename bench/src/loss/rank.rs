//! One rank of `bench loss`.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use ringmaster_manifest::spec::Accelerator;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::floor::{Dense, Tiled, Units};
use super::inputs::{self, Shares};
use super::{DeviceKind, Dtype, Exchange, Kind, LossArgs};
use crate::{memory, processes};
use ringmaster_worker::collective::nccl::{self, Nccl, UniqueId};
use ringmaster_worker::collective::tcp::AbortFlag;
use ringmaster_worker::collective::{ByDevice, Collective};
use ringmaster_worker::ffi::slices;
use ringmaster_worker::loss::{Inputs, Output, Tiling, infonce, siglip};

/// Calls before the measured ones: buffers of libraries, code pages, sockets' windows.
const WARMUP_STEPS: u32 = 2;

/// What a rank measured; times have one entry a step.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) seconds: Vec<f64>,
    pub(super) floor_seconds: Vec<f64>,
    /// Empty where the whole pair matrix would be too large.
    pub(super) dense_floor_seconds: Vec<f64>,
    /// None where other ranks use the same GPU.
    pub(super) peak_bytes: Option<u64>,
    pub(super) sub_chunk: usize,
    pub(super) tile_rows: usize,
    pub(super) loss: f64,
    pub(super) grad_abs_x: f64,
    pub(super) grad_abs_y: f64,
    pub(super) grad_wave_x: f64,
    pub(super) grad_wave_y: f64,
    pub(super) grad_scale: f64,
    pub(super) grad_bias: f64,
}

/// Joins the ring, measures, and reports to the parent.
pub(super) fn run(args: &LossArgs) -> anyhow::Result<()> {
    tch::set_num_threads(args.threads as i32);
    let host = processes::child()?;
    let device = device(args, host.rank())?;
    let collective = match device {
        Device::Cuda(ordinal) if host.world_size() > 1 => join_gpus(host, ordinal)?,
        _ => host,
    };
    let bench = Bench::new(args, device, &*collective);
    let measured = tch::no_grad(|| bench.measure())?;
    processes::report(&measured)?;
    // collective: barrier, so that no rank leaves while another may still wait for it.
    Ok(collective.barrier()?)
}

fn device(args: &LossArgs, rank: usize) -> anyhow::Result<Device> {
    let local_rank = if args.share_gpu { 0 } else { rank as u32 };
    let accelerator = match args.device {
        DeviceKind::Cpu => Accelerator::Cpu,
        DeviceKind::Cuda => Accelerator::Cuda,
    };
    ringmaster_worker::ffi::cuda::device(accelerator, local_rank).map_err(anyhow::Error::msg)
}

/// Connects the ranks' GPUs; the communicator's id goes round over `host`.
fn join_gpus(host: Box<dyn Collective>, ordinal: usize) -> anyhow::Result<Box<dyn Collective>> {
    let id = Tensor::zeros([UniqueId::LEN as i64], (tch::Kind::Int64, Device::Cpu));
    if host.rank() == 0 {
        let bytes: Vec<i64> =
            UniqueId::create()?.as_bytes().iter().map(|byte| i64::from(*byte)).collect();
        id.shallow_clone().f_copy_(&Tensor::from_slice(&bytes))?;
    }
    // collective: broadcast over the host's ring; the GPUs are not connected yet.
    host.broadcast(&id, 0)?.wait()?;
    let bytes: Vec<u8> =
        slices::to_i64(&id).into_iter().map(u8::try_from).collect::<Result<_, _>>()?;
    let options = nccl::Options {
        id: UniqueId::from_bytes(&bytes).context("rank 0 sent no communicator id")?,
        rank: host.rank(),
        world_size: host.world_size(),
        ordinal,
        connect_timeout: Duration::from_secs(60),
        deadline: None,
        abort_deadline: Duration::from_secs(20),
        on_failure: Some(host.aborter()),
    };
    let device = Nccl::connect(options, &AbortFlag::new())?;
    Ok(Box::new(ByDevice::new(Box::new(device), host)))
}

struct Bench<'a> {
    args: &'a LossArgs,
    collective: &'a dyn Collective,
    tiling: Tiling,
    counts: Vec<usize>,
    shares: Shares,
}

impl<'a> Bench<'a> {
    fn new(args: &'a LossArgs, device: Device, collective: &'a dyn Collective) -> Self {
        let rows = i64::from(args.local_batch);
        let kind = match args.dtype {
            Dtype::F32 => tch::Kind::Float,
            Dtype::Bf16 => tch::Kind::BFloat16,
        };
        let start = rows * collective.rank() as i64;
        let shares = Shares::new(start, rows, i64::from(args.dim), args.spread, kind, device);
        Self {
            args,
            collective,
            tiling: Tiling::choose(device, args.sub_chunk as usize, args.tile_rows as usize),
            counts: vec![args.local_batch as usize; collective.world_size()],
            shares,
        }
    }

    fn measure(&self) -> anyhow::Result<Measured> {
        let world_size = self.collective.world_size() as i64;
        // Memory before time: the floors' buffers are not there yet.
        let (output, risen) = match self.shares.image.device() {
            Device::Cuda(ordinal) => memory::device_peak_of(ordinal, || self.call())?,
            _ => {
                self.warm_up()?;
                memory::peak_of(|| self.call())?
            }
        };
        self.warm_up()?;
        let mut tiled = Tiled::new(&self.shares, world_size, self.tiling)?;
        let mut dense = Dense::new(&self.shares, world_size)?;
        let (mut seconds, mut floor_seconds, mut dense_floor_seconds) = (vec![], vec![], vec![]);
        for _ in 0..self.args.steps {
            seconds.push(self.timed(|| self.call().map(drop))?);
            floor_seconds.push(self.timed(|| Ok(tiled.run(self.units())?))?);
            if let Some(dense) = &mut dense {
                dense_floor_seconds.push(self.timed(|| Ok(dense.run(self.units())?))?);
            }
        }
        Ok(self.report(&output, risen, [seconds, floor_seconds, dense_floor_seconds]))
    }

    fn warm_up(&self) -> anyhow::Result<()> {
        for _ in 0..WARMUP_STEPS {
            self.call()?;
        }
        // collective: barrier. What is measured begins when every rank is warm.
        Ok(self.collective.barrier()?)
    }

    /// Seconds from the moment all ranks begin to the moment all have finished.
    fn timed(&self, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
        self.synchronize();
        // collective: barriers at both ends, so that every rank measures the slowest.
        self.collective.barrier()?;
        let began = Instant::now();
        work()?;
        self.synchronize();
        self.collective.barrier()?;
        Ok(began.elapsed().as_secs_f64())
    }

    fn synchronize(&self) {
        if let Device::Cuda(ordinal) = self.shares.image.device() {
            tch::Cuda::synchronize(ordinal as i64);
        }
    }

    fn call(&self) -> anyhow::Result<Output> {
        let inputs = Inputs::pairs(&self.shares.image, &self.shares.text, &self.counts)
            .with_logits(self.args.log_scale(), self.args.logit_bias);
        let (tiling, group) = (self.tiling, self.args.group as usize);
        let infonce = infonce::Options { tiling, logits_budget: self.args.logits_budget, group };
        Ok(match (self.args.kind, self.args.exchange) {
            (Kind::Siglip, _) => {
                siglip::ring(&inputs, siglip::Options { tiling, group }, self.collective)?
            }
            (Kind::Infonce, Exchange::AllGather) => {
                infonce::all_gather(&inputs, infonce, self.collective)?
            }
            (Kind::Infonce, Exchange::Ring) => infonce::ring(&inputs, infonce, self.collective)?,
        })
    }

    /// The products this loss cannot do without.
    fn units(&self) -> Units {
        let pairs = u64::from(self.args.local_batch).pow(2) * self.counts.len() as u64;
        let kept =
            self.args.exchange == Exchange::AllGather && pairs * 4 <= self.args.logits_budget;
        let forward = if self.args.kind == Kind::Infonce && !kept { 2 } else { 1 };
        Units { forward }
    }

    fn report(&self, output: &Output, risen: u64, times: [Vec<f64>; 3]) -> Measured {
        let start = self.collective.rank() as i64 * i64::from(self.args.local_batch);
        let (grad_abs_x, grad_wave_x) = inputs::sums(&output.grad_image, start);
        let (grad_abs_y, grad_wave_y) = inputs::sums(&output.grad_text, start);
        let bytes = |t: &tch::Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
        let outputs = bytes(&output.grad_image) + bytes(&output.grad_text);
        let [seconds, floor_seconds, dense_floor_seconds] = times;
        Measured {
            seconds,
            floor_seconds,
            dense_floor_seconds,
            // Both outputs are there at the end, which is when a ring's memory is at its highest.
            peak_bytes: (!self.args.share_gpu).then(|| risen.saturating_sub(outputs)),
            sub_chunk: self.tiling.sub_chunk,
            tile_rows: self.tiling.image_rows,
            loss: output.loss,
            grad_abs_x,
            grad_abs_y,
            grad_wave_x,
            grad_wave_y,
            grad_scale: output.grad_log_scale,
            grad_bias: output.grad_bias,
        }
    }
}
