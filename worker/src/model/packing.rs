//! Sequences of several lengths as the rows of one matrix, without padding.
//!
//! Rows of equal length form a group; attention runs once per group and everything else once for
//! all tokens. Rows inside a group keep the batch's order, groups go from short to long.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

/// Most groups that captions are sorted into on a CPU. With 16 every length of a short context has
/// its own group; a context of 77 is cut at multiples of five.
const MAX_GROUPS: usize = 16;

/// Sequences of one length.
#[derive(Debug)]
pub(super) struct Group {
    /// Sequences.
    pub(super) rows: i64,
    /// Tokens of each.
    pub(super) len: i64,
    /// What a pooled token sees where that is not its whole sequence: zero or -inf.
    /// Shape: [rows, 1, 1, len].
    pub(super) pooled_mask: Option<Tensor>,
    /// What every token sees where sequences are filled up: zero or -inf. Shape: [rows, 1, 1, len].
    pub(super) key_mask: Option<Tensor>,
}

/// How the tokens of a batch lie in a matrix, and which one each sequence is pooled at.
#[derive(Debug)]
pub(super) struct Packing {
    groups: Vec<Group>,
    causal: bool,
    /// Row of the matrix of each sequence's pooled token, in packed order.
    pooled: Tensor,
}

/// A packed batch of captions.
#[derive(Debug)]
pub(super) struct PackedText {
    pub(super) packing: Packing,
    /// Token of each row of the matrix. Shape: [S] i64.
    pub(super) tokens: Tensor,
    /// Its position in the caption. Shape: [S] i64.
    pub(super) positions: Tensor,
    /// For each caption in the batch's order, its place in packed order. Shape: [N] i64.
    pub(super) batch_order: Tensor,
    /// What tells its dropout from another's, where captions have any. Shape: [S] i64.
    pub(super) keys: Option<Tensor>,
}

/// What is packed of a caption's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedToken {
    pub(super) token: i64,
    /// In the position table.
    pub(super) position: i64,
    /// See [`PackedText::keys`].
    pub(super) key: i64,
}

impl Packing {
    /// Lays out `rows` sequences of `len` tokens that are pooled at their first token and attend
    /// both ways.
    pub(super) fn uniform(rows: i64, len: i64, device: Device) -> Self {
        let pooled = Tensor::arange_start_step(0, rows * len, len, (Kind::Int64, device));
        Self {
            groups: vec![Group { rows, len, pooled_mask: None, key_mask: None }],
            causal: false,
            pooled,
        }
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Whether tokens see only those before them.
    pub(super) fn causal(&self) -> bool {
        self.causal
    }

    /// Returns the pooled tokens. Shapes: x [S, W] -> [N, W], in packed order.
    pub(super) fn pooled(&self, x: &Tensor) -> Tensor {
        x.index_select(0, &self.pooled)
    }

    /// Cuts a matrix of tokens into groups. Shapes: [S, W] -> [rows·len, W] per group.
    pub(super) fn split(&self, x: &Tensor) -> Vec<Tensor> {
        self.cut(x, |group| group.rows * group.len)
    }

    /// Cuts a matrix of sequences into groups. Shapes: [N, W] -> [rows, W] per group.
    pub(super) fn split_rows(&self, x: &Tensor) -> Vec<Tensor> {
        self.cut(x, |group| group.rows)
    }

    fn cut(&self, x: &Tensor, size: impl Fn(&Group) -> i64) -> Vec<Tensor> {
        if self.groups.len() == 1 {
            return vec![x.shallow_clone()];
        }
        x.split_with_sizes(self.groups.iter().map(size).collect::<Vec<_>>(), 0)
    }
}

/// Packs the captions of `tokens`, `length` ids each, that are pooled at `pooled_at`.
///
/// Under a causal mask a caption is cut behind its pooled position: what follows cannot influence
/// it. `mask_kind` is the kind attention adds masks in.
pub(super) fn pack_text(
    tokens: &[i64],
    length: usize,
    pooled_at: &[usize],
    causal: bool,
    mask_kind: Kind,
    device: Device,
) -> PackedText {
    let cut = cut_lengths(length, pooled_at, causal, device);
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, &cut) in cut.iter().enumerate() {
        by_length.entry(cut).or_default().push(row);
    }
    let total = cut.iter().sum();
    let (mut ids, mut positions) = (Vec::with_capacity(total), Vec::with_capacity(total));
    let (mut pooled, mut batch_order) = (Vec::with_capacity(cut.len()), vec![0_i64; cut.len()]);
    let mut groups = Vec::with_capacity(by_length.len());
    for (len, rows) in by_length {
        for &row in &rows {
            batch_order[row] = pooled.len() as i64;
            pooled.push((ids.len() + pooled_at[row]) as i64);
            ids.extend_from_slice(&tokens[row * length..row * length + len]);
            positions.extend(0..len as i64);
        }
        let pooled_mask =
            causal.then(|| pooled_mask(&rows, len, pooled_at, mask_kind, device)).flatten();
        groups.push(Group {
            rows: rows.len() as i64,
            len: len as i64,
            pooled_mask,
            key_mask: None,
        });
    }
    let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
    PackedText {
        packing: Packing { groups, causal, pooled: tensor(&pooled) },
        tokens: tensor(&ids),
        positions: tensor(&positions),
        batch_order: tensor(&batch_order),
        keys: None,
    }
}

/// Packs captions of several lengths, that attend both ways and are
/// pooled at their first token.
///
/// Captions of one length form a group; or all are `filled` up to the longest with `padding`, which
/// nothing attends to.
pub(super) fn pack_unpadded(
    captions: &[Vec<PackedToken>],
    padding: PackedToken,
    filled: bool,
    mask_kind: Kind,
    device: Device,
) -> PackedText {
    let longest = captions.iter().map(Vec::len).max().unwrap_or(0);
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, caption) in captions.iter().enumerate() {
        let len = if filled { longest } else { caption.len() };
        by_length.entry(len).or_default().push(row);
    }
    let (mut tokens, mut positions, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let (mut pooled, mut batch_order) = (Vec::new(), vec![0_i64; captions.len()]);
    let mut groups = Vec::with_capacity(by_length.len());
    for (len, rows) in by_length {
        for &row in &rows {
            batch_order[row] = pooled.len() as i64;
            pooled.push(tokens.len() as i64);
            let caption = captions[row].iter().chain(std::iter::repeat(&padding)).take(len);
            caption.for_each(|token| {
                tokens.push(token.token);
                positions.push(token.position);
                keys.push(token.key);
            });
        }
        let lengths: Vec<usize> = rows.iter().map(|&row| captions[row].len()).collect();
        let key_mask = length_mask(&lengths, len, mask_kind, device);
        groups.push(Group {
            rows: rows.len() as i64,
            len: len as i64,
            pooled_mask: None,
            key_mask,
        });
    }
    let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
    PackedText {
        packing: Packing { groups, causal: false, pooled: tensor(&pooled) },
        tokens: tensor(&tokens),
        positions: tensor(&positions),
        batch_order: tensor(&batch_order),
        keys: Some(tensor(&keys)),
    }
}

/// Returns the mask of sequences of `lengths` tokens in rows of `len`, unless all fill theirs.
fn length_mask(lengths: &[usize], len: usize, kind: Kind, device: Device) -> Option<Tensor> {
    if lengths.iter().all(|&length| length == len) {
        return None;
    }
    let mask: Vec<f32> = lengths
        .iter()
        .flat_map(|&length| (0..len).map(move |position| position < length))
        .map(|seen| if seen { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    let shape = [lengths.len() as i64, 1, 1, len as i64];
    Some(Tensor::from_slice(&mask).view(shape).to_kind(kind).to_device(device))
}

/// Returns how many tokens of each caption are computed.
fn cut_lengths(length: usize, pooled_at: &[usize], causal: bool, device: Device) -> Vec<usize> {
    if !causal {
        return vec![length; pooled_at.len()];
    }
    let longest = pooled_at.iter().max().map_or(0, |&position| position + 1);
    let granule = match device {
        Device::Cpu => length.div_ceil(MAX_GROUPS),
        // A launch per group costs a GPU more than the padding saved: one group, trimmed.
        _ => longest,
    };
    let round_up = |position: usize| (position + 1).next_multiple_of(granule).min(longest);
    pooled_at.iter().map(|&position| round_up(position)).collect()
}

/// Returns the mask of the pooled tokens of `rows`, unless each is the last of its sequence.
fn pooled_mask(
    rows: &[usize],
    len: usize,
    pooled_at: &[usize],
    kind: Kind,
    device: Device,
) -> Option<Tensor> {
    if rows.iter().all(|&row| pooled_at[row] + 1 == len) {
        return None;
    }
    let seen = |row: usize, position: usize| position <= pooled_at[row];
    let mask: Vec<f32> = rows
        .iter()
        .flat_map(|&row| (0..len).map(move |position| (row, position)))
        .map(|(row, position)| if seen(row, position) { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    let shape = [rows.len() as i64, 1, 1, len as i64];
    Some(Tensor::from_slice(&mask).view(shape).to_kind(kind).to_device(device))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ids(tensor: &Tensor) -> Vec<i64> {
        tensor.try_into().unwrap()
    }

    #[test]
    fn captions_are_cut_at_their_end_and_grouped_by_length() {
        let tokens = [1, 9, 0, 0, 1, 5, 6, 9, 1, 9, 0, 0];
        let packed = pack_text(&tokens, 4, &[1, 3, 1], true, Kind::Float, Device::Cpu);
        assert_eq!(ids(&packed.tokens), [1, 9, 1, 9, 1, 5, 6, 9]);
        assert_eq!(ids(&packed.positions), [0, 1, 0, 1, 0, 1, 2, 3]);
        assert_eq!(ids(&packed.packing.pooled), [1, 3, 7]);
        assert_eq!(ids(&packed.batch_order), [0, 2, 1]);
        let sizes: Vec<_> = packed.packing.groups.iter().map(|g| (g.rows, g.len)).collect();
        assert_eq!(sizes, [(2, 2), (1, 4)]);
        assert!(packed.packing.groups.iter().all(|group| group.pooled_mask.is_none()));
    }

    #[test]
    fn long_contexts_get_few_groups_whose_pooled_tokens_see_no_padding() {
        let pooled_at: Vec<usize> = (1..77).collect();
        let tokens = vec![0; 77 * pooled_at.len()];
        let packed = pack_text(&tokens, 77, &pooled_at, true, Kind::Float, Device::Cpu);
        assert!(packed.packing.groups.len() <= MAX_GROUPS);
        let first = &packed.packing.groups[0];
        assert_eq!((first.rows, first.len), (4, 5));
        let mask: Vec<f32> =
            first.pooled_mask.as_ref().unwrap().view([4, 5]).select(0, 0).try_into().unwrap();
        assert_eq!(mask, [0.0, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY]);
    }

    #[test]
    fn filled_captions_see_only_themselves() {
        let packed = |token, position| PackedToken { token, position, key: 10 * token };
        let captions = [vec![packed(5, 2)], vec![packed(6, 2), packed(7, 3)]];
        let padding = PackedToken { token: 1, position: 1, key: 0 };
        let packed = pack_unpadded(&captions, padding, false, Kind::Float, Device::Cpu);
        assert_eq!(ids(&packed.tokens), [5, 6, 7]);
        assert_eq!(ids(&packed.positions), [2, 2, 3]);
        assert_eq!(ids(packed.keys.as_ref().unwrap()), [50, 60, 70]);
        assert!(packed.packing.groups.iter().all(|group| group.key_mask.is_none()));
        let mask = length_mask(&[1, 2], 2, Kind::Float, Device::Cpu).unwrap();
        let mask: Vec<f32> = mask.view([-1]).try_into().unwrap();
        assert_eq!(mask, [0.0, f32::NEG_INFINITY, 0.0, 0.0]);
    }

    #[test]
    fn without_a_causal_mask_every_token_counts() {
        let packed = pack_text(&[1, 9, 0, 1, 5, 9], 3, &[1, 2], false, Kind::Float, Device::Cpu);
        assert_eq!(ids(&packed.tokens), [1, 9, 0, 1, 5, 9]);
        assert_eq!(ids(&packed.packing.pooled), [1, 5]);
    }
}
