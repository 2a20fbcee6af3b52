//! From encoded image to normalised pixels, in pure Rust.
//!
//! Modules in reading order: [`pixels`] (an image in memory), [`mod@decode`] (bytes to RGB) with
//! [`formats`] and [`jpeg`], [`resize`] (antialiased as PIL's),
//! [`preprocess`] (what evaluation sees), [`augment`] (what training sees) with its parts
//! [`affine`] and [`color`].
//!
//! Pixels leave this module as f32 planes `[3, S, S]` (red, green, blue), divided by 255, less the
//! mean, over the standard deviation. Nothing here calls ATen, so reader threads may.

pub mod affine;
pub mod augment;
pub mod color;
pub mod decode;
pub mod formats;
pub mod jpeg;
pub mod pixels;
pub mod preprocess;
pub mod resize;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod parity_tests;

pub use augment::{Augment, Hole};
pub use decode::{decode, decode_scaled};
pub use pixels::RgbImage;
pub use preprocess::Preprocess;
pub use resize::{Filter, Rect, Scratch};

use libjpeg_turbo_rs::JpegError;

/// Why an image could not be turned into pixels. Every variant is a property of the bytes, so it
/// never passes by itself: the data loader counts such a sample as corrupt.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The header announces more pixels than are accepted.
    #[error("the image is {width} x {height} pixels; at most {limit} pixels are accepted")]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Largest accepted product of both.
        limit: u64,
    },
    /// The bytes are of no known format.
    #[error("not a png, jpeg, webp or gif image but {what} ({bytes} bytes)")]
    UnknownFormat {
        bytes: usize,
        /// What it is instead, as far as it begins in a known way.
        what: String,
    },
    /// Not all of a JPEG's picture is there.
    #[error("the jpeg is cut short: not all data of its picture are there")]
    Truncated,
    /// The decoder refused the bytes.
    #[error("the {format} image cannot be decoded")]
    Decode {
        /// Name of the format that the first bytes announce.
        format: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The JPEG decoder refused the bytes.
    #[error("the jpeg image cannot be decoded")]
    Jpeg {
        #[source]
        source: JpegError,
    },
    /// The decoder panicked at the bytes.
    #[error("the decoder of {format} images fails at this one: {message}")]
    Panic {
        /// Name of the format that the first bytes announce.
        format: &'static str,
        message: String,
    },
    /// The image has no pixels, or one side is too long for the other.
    #[error(
        "the image is {width} x {height} pixels: resized to a side of {side}, its other side would \
         have no pixels, or more than 4294967295"
    )]
    Shape {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        side: u32,
    },
}
