//! From encoded image to normalised pixels, in pure Rust.
//!
//! Modules in reading order: [`mod@decode`] (bytes to RGB), [`resize`] (antialiased as PIL's),
//! [`preprocess`] (what evaluation sees), [`augment`] (what training sees) with its parts
//! [`affine`] and [`color`].
//!
//! Pixels leave this module as f32 planes `[3, S, S]` (red, green, blue), divided by 255, less the
//! mean, over the standard deviation. Nothing here calls ATen, so reader threads may.

pub mod affine;
pub mod augment;
pub mod color;
pub mod decode;
pub mod preprocess;
pub mod resize;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod parity;

pub use augment::Augment;
pub use decode::decode;
pub use preprocess::Preprocess;
pub use resize::{Filter, Scratch};

pub use ::image::RgbImage;

/// Why an image could not be turned into pixels. Every variant is a property of the bytes, so it
/// never passes by itself: the data loader counts such a sample as corrupt.
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
    #[error("not a png, jpeg, webp or gif image ({bytes} bytes)")]
    UnknownFormat {
        /// Length of the member.
        bytes: usize,
    },
    /// A JPEG ends before its end-of-image marker.
    #[error("the jpeg is cut short: it has no end-of-image marker")]
    Truncated,
    /// The decoder refused the bytes.
    #[error("the {format} image cannot be decoded")]
    Decode {
        /// Name of the format that the first bytes announce.
        format: &'static str,
        /// The decoder's reason.
        #[source]
        source: ::image::ImageError,
    },
    /// libjpeg-turbo refused the bytes.
    #[error("the jpeg image cannot be decoded: {reason}")]
    Jpeg {
        /// What it said.
        reason: String,
    },
    /// The image has no pixels, or one side is too long for the other.
    #[error("the image is {width} x {height} pixels, which cannot be resized to a side of {side}")]
    Shape {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Side asked for.
        side: u32,
    },
}
