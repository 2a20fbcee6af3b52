//! Every parameter of a model as a view into one flat buffer.
//!
//! Reductions, the optimizer and checkpoints work on slices of the flat buffers, so nothing is
//! gathered or scattered per tensor. Parameters lie in groups: image decay, image no-decay, text
//! decay, text no-decay, head. Each entry starts at a multiple of [`ALIGNMENT`] elements and the
//! gaps belong to the group before them; they are zero in both buffers and stay so, since a zero
//! parameter with a zero gradient is left at zero by AdamW.

use std::collections::HashMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::Error;
use super::init::Init;

/// Elements that an entry's offset is a multiple of: 64 bytes of f32, a cache line and the widest
/// vector register.
pub const ALIGNMENT: usize = 16;

/// The part of the model a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tower {
    /// The image tower (`visual.*`).
    Image,
    /// The text tower.
    Text,
    /// `logit_scale` and, where the model has one, `logit_bias`.
    Head,
}

/// What an entry of the flat buffers is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Learned.
    Parameter,
    /// Part of the model that never changes, such as sine positions.
    Fixed,
    /// A running statistic, which a forward pass in training changes.
    Statistic,
}

/// Where one parameter lies in the flat buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// OpenCLIP's state-dict key.
    pub name: String,
    /// Shape under that key; empty for a scalar.
    pub shape: Vec<i64>,
    /// First element in the flat buffers, a multiple of [`ALIGNMENT`].
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// Whose parameter it is.
    pub tower: Tower,
    /// Whether weight decay applies: not to vectors, scalars and position embeddings.
    pub decay: bool,
    /// What it is for. The gradient of what is not learned is always zero, so an optimizer leaves
    /// it as it is.
    pub role: Role,
}

/// What [`Params::new`] needs to know of a parameter.
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) tower: Tower,
    pub(super) decay: bool,
    pub(super) role: Role,
    pub(super) init: Init,
}

/// All parameters of a model and their gradients, flat.
#[derive(Debug)]
pub struct Params {
    flat: Tensor,
    grad: Tensor,
    entries: Vec<Entry>,
    /// Leaves of autograd, one per entry, sharing `flat`'s storage.
    leaves: Vec<Tensor>,
    /// Views into `grad`, one per entry, in its shape.
    grads: Vec<Tensor>,
    by_name: HashMap<String, usize>,
}

impl Params {
    /// Lays out and initialises the parameters of `specs`.
    ///
    /// Values depend on `seed` and each parameter's name only, not on the order of `specs`.
    pub(super) fn new(mut specs: Vec<Spec>, kind: Kind, device: Device, seed: u64) -> Self {
        specs.sort_by_key(|spec| (spec.tower, !spec.decay)); // stable: order inside a group is kept
        let mut entries = Vec::with_capacity(specs.len());
        let mut end = 0;
        for spec in &specs {
            let len = spec.shape.iter().product::<i64>() as usize;
            entries.push(Entry {
                name: spec.name.clone(),
                shape: spec.shape.clone(),
                offset: end,
                len,
                tower: spec.tower,
                decay: spec.decay,
                role: spec.role,
            });
            end = (end + len).next_multiple_of(ALIGNMENT);
        }
        let flat = Tensor::zeros([end as i64], (kind, device));
        let grad = flat.zeros_like();
        for (entry, spec) in entries.iter().zip(&specs) {
            if spec.init == Init::Constant(0.0) {
                continue; // as the buffer is
            }
            let values = spec.init.values(seed, &entry.name, entry.len);
            view(&flat, entry).copy_(&Tensor::from_slice(&values).view(entry.shape.as_slice()));
        }
        // Detached first: a leaf must not carry the history of how it was cut out.
        let leaves = entries.iter().map(|entry| {
            let learned = entry.role == Role::Parameter;
            view(&flat, entry).detach().set_requires_grad(learned)
        });
        let by_name =
            entries.iter().enumerate().map(|(i, entry)| (entry.name.clone(), i)).collect();
        let leaves = leaves.collect();
        let grads = entries.iter().map(|entry| view(&grad, entry)).collect();
        Self { flat, grad, entries, leaves, grads, by_name }
    }

    /// Returns all parameter values, gaps included, without autograd. Shape: `[P]`.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Returns the gradients in the layout of [`Self::flat`]. Shape: `[P]`.
    pub fn grad(&self) -> &Tensor {
        &self.grad
    }

    /// Returns where each parameter lies, by offset.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the contiguous part of the flat buffers that holds `tower`, gaps included.
    pub fn range(&self, tower: Tower) -> Range<usize> {
        self.span(|entry| entry.tower == tower)
    }

    /// Returns the parts of the flat buffers and whether weight decay applies to them. They are
    /// in order and cover everything.
    pub fn decay_ranges(&self) -> Vec<(Range<usize>, bool)> {
        let mut ranges = Vec::new();
        for tower in [Tower::Image, Tower::Text, Tower::Head] {
            for decay in [true, false] {
                let range = self.span(|entry| entry.tower == tower && entry.decay == decay);
                if !range.is_empty() {
                    ranges.push((range, decay));
                }
            }
        }
        ranges
    }

    /// Returns the parameter called `name`: a leaf of autograd that shares [`Self::flat`]'s
    /// storage.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&index| &self.leaves[index])
    }

    /// Returns where the parameter called `name` lies.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&index| &self.entries[index])
    }

    /// Writes the gradient of `surrogate` with respect to every parameter of `tower` into
    /// [`Self::grad`], or adds it when `accumulate`.
    ///
    /// `surrogate` is a scalar with a graph, usually `(embeddings * d_embeddings).sum()`; its
    /// graph is used up. Parameters it does not depend on get zero (or are left, when
    /// `accumulate`). Gaps are not written.
    ///
    /// # Errors
    /// When autograd fails, for instance because `surrogate` has no graph.
    pub fn backward(
        &self,
        tower: Tower,
        surrogate: &Tensor,
        accumulate: bool,
    ) -> Result<(), Error> {
        let learned = |entry: &Entry| entry.tower == tower && entry.role == Role::Parameter;
        let members: Vec<usize> =
            (0..self.entries.len()).filter(|&index| learned(&self.entries[index])).collect();
        let leaves: Vec<&Tensor> = members.iter().map(|&index| &self.leaves[index]).collect();
        let found = Tensor::f_run_backward(&[surrogate], &leaves, false, false)
            .map_err(|source| Error::Backward { tower, source })?;
        for (&index, found) in members.iter().zip(&found) {
            store(found, self.grads[index].shallow_clone(), accumulate);
        }
        Ok(())
    }

    /// Returns from the first member's offset to the end of the last one's gap.
    fn span(&self, member: impl Fn(&Entry) -> bool) -> Range<usize> {
        let mut members = self.entries.iter().filter(|entry| member(entry));
        let Some(first) = members.next() else { return 0..0 };
        let last = members.next_back().unwrap_or(first);
        first.offset..(last.offset + last.len).next_multiple_of(ALIGNMENT)
    }
}

/// Cuts `entry` out of a flat buffer, in its shape.
fn view(flat: &Tensor, entry: &Entry) -> Tensor {
    flat.narrow(0, entry.offset as i64, entry.len as i64).view(entry.shape.as_slice())
}

/// Puts what autograd found for one parameter into its slice of the flat gradient.
fn store(found: &Tensor, mut grad: Tensor, accumulate: bool) {
    let overwrites = found.defined() && !found.is_sparse();
    if !accumulate && !overwrites {
        let _ = grad.zero_();
    }
    if !found.defined() {
        return;
    }
    if found.is_sparse() {
        // A row per looked-up token; rows of the same token are added in their order.
        let rows = found.internal_indices().select(0, 0);
        let _ = grad.index_add_(0, &rows, &found.internal_values());
    } else if accumulate {
        let _ = grad.g_add_(found);
    } else {
        grad.copy_(found);
    }
}
