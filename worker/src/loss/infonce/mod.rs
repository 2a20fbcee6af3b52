//! CLIP's InfoNCE, computed from one side (arXiv:2103.00020, §2.3).
//!
//! Each rank computes only its rows of logits s_ij = t x_i·y_j, tile by tile. The row log-sum-exp
//! R_i is local; the column one, C_j, combines every rank's maximum and rescaled sum. With
//! G_ij = (exp(s_ij − R_i) + exp(s_ij − C_j) − 2 δ_ij) / 2B: L = (1/2B) Σ_i (R_i + C_i − 2 s_ii),
//! dX_r = t G Y (complete locally), dY = Σ over ranks of t Gᵀ X_r, dt′ = Σ_ij G_ij s_ij.
//!
//! [`all_gather`] gathers the text once: half the traffic of gathering both sides, and four matrix
//! products per pair, three when the dot products fit [`Options::logits_budget`] and are kept.
//! [`ring`](fn@ring) passes the text round twice instead (first for C, then for the gradients), and never
//! holds more than a few blocks of it.

mod gathered;
mod passes;
mod ring;

pub use gathered::all_gather;
pub use ring::ring;

use super::Tiling;

/// How the work is divided; part of the numeric plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Sizes of sub-chunks and tiles.
    pub tiling: Tiling,
    /// Bytes this rank may keep for its rows of logits instead of computing them twice;
    /// [`all_gather`] only.
    pub logits_budget: u64,
    /// Ranks that stand together in the ring; [`ring`](fn@ring) only.
    pub group: usize,
}
