//! What a rank reads, step by step: laid out once for each, some steps ahead, so that blocks are on their way when they
//! are needed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::blocks::Blocks;
use crate::dataset::Dataset;
use crate::order::{Visit, Windows};

/// Steps whose blocks are fetched beyond those that are decoded.
const AHEAD: u64 = 4;

/// Which rows of which steps.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) dataset: Arc<Dataset>,
    /// Rows of every global batch.
    pub(crate) global_batch: u64,
    /// This rank's rows of it.
    pub(crate) rows: Range<u64>,
    pub(crate) first_step: u64,
    /// Samples of the run before `first_step`.
    pub(crate) first_sample: u64,
    /// One past the last step.
    pub(crate) last_step: u64,
    pub(crate) left_out: Windows,
}

/// See the module. Shared by reader threads.
#[derive(Debug)]
pub(crate) struct Plan {
    scope: Scope,
    /// Steps that are kept once they are laid out.
    kept: u64,
    steps: Mutex<Steps>,
}

#[derive(Debug)]
struct Steps {
    /// First step that is not laid out yet.
    next: u64,
    laid_out: VecDeque<(u64, Arc<Vec<Visit>>)>,
}

impl Plan {
    /// Returns the plan of readers that work on `prefetch` steps beyond the one in use.
    pub(crate) fn new(scope: Scope, prefetch: u64) -> Self {
        let steps = Mutex::new(Steps { next: scope.first_step, laid_out: VecDeque::new() });
        // Those kept ready, the one in use, and the one after them.
        Self { scope, kept: prefetch + AHEAD + 3, steps }
    }

    /// Returns what stands in this rank's rows of a step, and lets the blocks of the steps after it be fetched.
    pub(crate) fn visits(&self, step: u64, blocks: Option<&Blocks>) -> Arc<Vec<Visit>> {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        while steps.next <= step
            || (steps.next <= step + AHEAD && steps.next < self.scope.last_step)
        {
            let visits = Arc::new(self.lay_out(steps.next));
            if let Some(blocks) = blocks {
                let order = self.scope.dataset.order();
                let dataset = &self.scope.dataset;
                let read = visits.iter().filter(|visit| !dataset.is_synthetic(visit.source));
                let need = |visit: &Visit| dataset.need(*visit, order.sample(*visit).index);
                blocks.want(read.map(need));
            }
            let next = steps.next;
            steps.laid_out.push_back((next, visits));
            steps.next += 1;
        }
        while steps.laid_out.len() as u64 > self.kept {
            steps.laid_out.pop_front();
        }
        let known = steps.laid_out.iter().find(|(laid_out, _)| *laid_out == step);
        known.map_or_else(|| Arc::new(self.lay_out(step)), |(_, visits)| Arc::clone(visits))
    }

    /// Returns the first position of every source that a step reads, or would read.
    pub(crate) fn first_positions(&self, step: u64) -> Vec<u64> {
        self.scope.dataset.order().first_positions(self.samples_before(step), &self.scope.left_out)
    }

    fn lay_out(&self, step: u64) -> Vec<Visit> {
        let (before, rows) = (self.samples_before(step), self.scope.rows.clone());
        self.scope.dataset.order().visits(
            before,
            self.scope.global_batch,
            rows,
            &self.scope.left_out,
        )
    }

    fn samples_before(&self, step: u64) -> u64 {
        self.scope.first_sample + (step - self.scope.first_step) * self.scope.global_batch
    }
}
