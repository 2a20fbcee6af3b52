//! One training step up to *ready*: from a batch to reduced gradients on every rank.

use std::time::Instant;

use ringmaster_data::{Batch, corrupt};
use ringmaster_inputs::rng::{Site, key};
use ringmaster_proto::v1::Phase;
use tch::Tensor;

use super::context::Context;
use super::loss_choice;
use super::towers::{Draw, Share};
use crate::collective::{self, Collective, Pending, ReduceOp, bytes};
use crate::error::Error;
use crate::faults::FaultPoint;
use crate::model::Tower;
use crate::rank::preprocess;
use crate::replica::agreement;
use crate::replica::{HeldStep, Replica};

/// What the ranks know of a step once all of them hold its reduced gradients.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    /// Of the global batch.
    pub loss: f64,
    /// Depends on which sample stood in which row of the global batch, on nothing else.
    pub order_digest: u64,
    /// Some rank was asked to stop: all stop after this step.
    pub stop: bool,
    /// Seconds every rank has computed in this step, by rank.
    pub busy: Vec<f64>,
}

/// Runs step `replica.applied` (0-based) on this rank's share of it.
///
/// On return every rank holds the same reduced gradients and has entered *ready*: each may apply
/// them alone. The order, and what is in flight meanwhile: towers forward; loss over the ring;
/// image tower backward; text tower backward while the image gradients are reduced; text gradients
/// reduced; *ready*.
pub(crate) fn run(
    context: &Context<'_>,
    replica: &mut Replica,
    batch: &Batch,
    stop: bool,
) -> Result<Ready, Error> {
    let Context { job, collective, control, faults, device, .. } = context;
    replica.held = None;
    let step = replica.applied;
    let (began, waited) = (Instant::now(), collective::waited());
    control.status(|status| status.phase = Phase::Compute.into());
    let rows: Vec<u64> = batch.rows.clone().collect();
    let draw = Draw { seed: job.data.seed, step };
    let micro = context.plan.micro_per_rank;
    let inputs = (batch, &preprocess(job));
    let share = Share::new(&replica.clip, inputs, &rows, micro, draw, *device);

    // Forward: this rank's rows alone.
    let image = share.encode(Tower::Image)?;
    let text = share.encode(Tower::Text)?;
    let embeddings = (&image.embeddings, &text.embeddings);
    // The loss exchanges embeddings with all ranks: its collectives are the first of the step. They leave
    // complete gradients of this rank's rows.
    let loss = loss_choice::loss(context, &replica.clip, batch, embeddings.0, embeddings.1)?;
    share.backward(Tower::Image, image, &loss.grad_image)?;
    faults.strike(step + 1, FaultPoint::BeforeReduce);
    // collective: all-reduce of a few counts, in flight beside the gradients.
    let counts = Counts::begin(context, replica, batch)?;
    // collective: all-reduce of the image tower's gradients, in flight while the text tower goes backward.
    let image_sum = reduce(replica, Tower::Image, *collective)?;
    share.backward(Tower::Text, text, &loss.grad_text)?;
    // collective: all-reduce of the text tower's gradients.
    let text_sum = reduce(replica, Tower::Text, *collective)?;
    // t′ and β: the loss already summed these over all ranks.
    replica.set_logit_gradients(loss.grad_log_scale, loss.grad_bias);

    control.status(|status| status.phase = Phase::Collective.into());
    // Waits for the rank whose backward pass is slowest.
    image_sum.wait()?;
    text_sum.wait()?;
    let held = share_corrupt(context, replica, counts, loss.loss)?;
    let order_digest = held.order_digest;
    // From here on this rank can apply the step alone. It must be set before *ready* begins: recovery takes
    // it that a rank which entered *ready* holds the gradients, and that others may have applied them.
    replica.held = Some(held);
    let busy = began.elapsed().as_secs_f64() - (collective::waited() - waited);
    ready(context, replica, Contribution { loss: loss.loss, order_digest, stop, busy })
}

/// What a rank brings into *ready*.
struct Contribution {
    loss: f64,
    order_digest: u64,
    stop: bool,
    /// Seconds it has computed.
    busy: f64,
}

/// What is summed over the ranks in every step beside gradients: a hash of the order, samples replaced, and corrupt
/// samples that the ledger lacks.
struct Counts<'a> {
    found: Vec<&'a corrupt::Corrupt>,
    sums: Tensor,
    reduction: Pending,
}

impl<'a> Counts<'a> {
    /// Begins to sum this rank's part.
    fn begin(context: &Context<'_>, replica: &Replica, batch: &'a Batch) -> Result<Self, Error> {
        let order = order_digest(context.job.data.seed, replica.applied, batch);
        // What the ledger has is known to all: readers meet it again until they are started with the new ledger.
        let new = |corrupt: &&corrupt::Corrupt| replica.ledger.reason(corrupt.sample).is_none();
        let found: Vec<&corrupt::Corrupt> = batch.corrupt.iter().filter(new).collect();
        let sums = [order as i64, batch.replaced as i64, found.len() as i64];
        let sums = Tensor::from_slice(&sums);
        let reduction = context.collective.all_reduce(&sums, ReduceOp::Sum)?;
        Ok(Self { found, sums, reduction })
    }
}

/// Returns what every rank has to know of the step: whoever applies it, even alone after a fault,
/// knows all corrupt samples.
fn share_corrupt(
    context: &Context<'_>,
    replica: &Replica,
    counts: Counts<'_>,
    loss: f64,
) -> Result<HeldStep, Error> {
    let Counts { found, sums, reduction } = counts;
    // The sum tells every rank alike whether the longer exchange below follows.
    reduction.wait()?;
    let mut corrupt = Vec::new();
    if sums.int64_value(&[2]) > 0 {
        let own = serde_json::to_vec(&found).expect("plain data serialises");
        for text in bytes::gather(&own, context.collective)? {
            let theirs: Vec<corrupt::Corrupt> = serde_json::from_slice(&text).map_err(|e| {
                Error::Internal { what: format!("corrupt samples of another rank: {e}") }
            })?;
            corrupt.extend(theirs);
        }
        // All ranks see the same corrupt samples, so all of them stop here or none does.
        corrupt::check_with(&replica.ledger, &corrupt, context.corrupt_limit)?;
    }
    let [order_digest, replaced] = [0, 1].map(|place| sums.int64_value(&[place]) as u64);
    Ok(HeldStep { loss, order_digest, replaced, corrupt })
}

/// The small all-reduce that says that every rank holds the reduced gradients.
fn ready(context: &Context<'_>, replica: &Replica, own: Contribution) -> Result<Ready, Error> {
    let Contribution { loss, order_digest, stop, busy } = own;
    let squared_norm = crate::optim::norm::squared_norm(replica.clip.params().grad());
    let finite = squared_norm.is_finite() && loss.is_finite();
    let (rank, world_size) = (context.collective.rank(), context.collective.world_size());
    let mut flags = vec![f64::from(u8::from(!finite)), f64::from(u8::from(stop))];
    // Then of every rank, by rank, what no other adds to: the time it computed, and its gradients' norm.
    let (times, norms) = (flags.len(), flags.len() + world_size);
    flags.resize(norms + world_size, 0.0);
    flags[times + rank] = busy.max(0.0);
    flags[norms + rank] = if finite { squared_norm } else { 0.0 };
    let flags = Tensor::from_slice(&flags);
    // collective: *ready*, an all-reduce. It ends here only when every rank has begun it, and a rank begins
    // it with the reduced gradients in hand. So the update that follows needs no other rank.
    context.collective.all_reduce(&flags, ReduceOp::Max)?.wait()?;
    if context.faults.ready_is_lost(replica.applied + 1) {
        let reason = "RINGMASTER_FAULT takes the end of ready away".to_owned();
        context.collective.aborter().abort(&reason);
        return Err(collective::Error::Aborted { reason }.into());
    }
    let flag = |i: i64| flags.double_value(&[i]);
    if flag(0) > 0.0 {
        return Err(Error::NotFinite { step: replica.applied + 1, loss, squared_norm });
    }
    let of_ranks = |first: usize| (first as i64..(first + world_size) as i64).map(flag);
    compare_norms(replica.applied + 1, &of_ranks(norms).collect::<Vec<_>>(), context.collective)?;
    let busy = of_ranks(times).collect();
    Ok(Ready { loss, order_digest, stop: flag(1) > 0.0, busy })
}

/// Makes sure that all ranks hold the same sum of their gradients, by its squared norm on every rank.
fn compare_norms(step: u64, squares: &[f64], collective: &dyn Collective) -> Result<(), Error> {
    let bits: Vec<u64> = squares.iter().map(|square| square.to_bits()).collect();
    if agreement::all_equal(&bits) {
        return Ok(());
    }
    agreement::all_have_seen_it(collective);
    let lowest = squares.iter().copied().fold(f64::INFINITY, f64::min).sqrt();
    let highest = squares.iter().copied().fold(0.0, f64::max).sqrt();
    Err(Error::ReplicasDiffer { step, lowest, highest, minority: agreement::minority(&bits) })
}

/// Wrapping sum over rows of a hash of (step, row, source, sample): adding the ranks' parts gives the same
/// number however the rows are split.
fn order_digest(seed: u64, step: u64, batch: &Batch) -> u64 {
    batch
        .rows
        .clone()
        .zip(&batch.samples)
        .map(|(row, sample)| [step, row, sample.source.into(), sample.index])
        .fold(0, |sum, words| sum.wrapping_add(key(seed, Site::OrderDigest, &words)))
}

fn reduce(replica: &Replica, tower: Tower, collective: &dyn Collective) -> Result<Pending, Error> {
    let params = replica.clip.params();
    let range = params.range(tower);
    let grad = params.grad().narrow(0, range.start as i64, range.len() as i64);
    Ok(collective.all_reduce(&grad, ReduceOp::Sum)?)
}
