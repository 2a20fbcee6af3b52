//! A contact sheet of the set: one emoji after another, each as all vendors draw it.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Drawing;
use super::catalogue::Emoji;
use super::picture::{self, SIDE};
use super::source::VENDORS;

/// Emoji side by side; each takes one column per vendor.
const ACROSS: usize = 4;
/// Emoji below one another.
const DOWN: usize = 15;
/// White pixels between two emoji.
const GAP: usize = 16;

/// A PNG with emoji taken evenly from the whole catalogue. From left to right each is drawn by the
/// vendors in the order of [`VENDORS`], the held-out one last; a gap is a drawing that is missing.
pub(super) fn contact_sheet(emoji: &[Emoji], drawings: &[Drawing]) -> Result<Vec<u8>> {
    let side = SIDE as usize;
    let cell = VENDORS.len() * side + GAP;
    let (width, height) = (ACROSS * cell, DOWN * side);
    let mut sheet = vec![255; width * height * 3];
    let by_place: BTreeMap<_, _> = drawings
        .iter()
        .filter_map(|drawing| {
            Some(((drawing.emoji, drawing.vendor.name), drawing.png.as_ref().ok()?))
        })
        .collect();
    for place in 0..ACROSS * DOWN {
        let index = place * emoji.len() / (ACROSS * DOWN);
        for (column, vendor) in VENDORS.iter().enumerate() {
            let Some(png) = by_place.get(&(index, vendor.name)) else { continue };
            let left = (place % ACROSS) * cell + column * side;
            let top = (place / ACROSS) * side;
            for (y, row) in picture::pixels(png)?.chunks_exact(side * 3).enumerate() {
                let start = ((top + y) * width + left) * 3;
                sheet[start..start + row.len()].copy_from_slice(row);
            }
        }
    }
    picture::encode_png(&sheet, width as u32, height as u32)
}
