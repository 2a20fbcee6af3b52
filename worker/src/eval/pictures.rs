//! Small pictures of evaluation samples for the report.

use std::io::Cursor;

use image::ImageFormat;
use image::imageops::{FilterType, resize};

use super::scores::Picture;

/// Files up to this many bytes are taken as they are.
const SMALL_FILE: usize = 12 << 10;
/// Longest side of a reduced picture, in pixels: twice what the page shows, for sharp displays.
const SIDE: u32 = 144;

/// Returns a picture of an encoded image, or none where it cannot be decoded.
pub(super) fn picture(bytes: &[u8]) -> Option<Picture> {
    if bytes.len() <= SMALL_FILE
        && let Some(media_type) = shown_by_browsers(bytes)
    {
        return Some(Picture { media_type, bytes: bytes.to_vec() });
    }
    let image = crate::image::decode(bytes).ok()?;
    let longest = image.width().max(image.height()).max(1);
    let small = if longest > SIDE {
        let side = |length: u32| (length * SIDE / longest).max(1);
        resize(&image, side(image.width()), side(image.height()), FilterType::Triangle)
    } else {
        image
    };
    let mut png = Cursor::new(Vec::new());
    small.write_to(&mut png, ImageFormat::Png).ok()?;
    Some(Picture { media_type: "image/png", bytes: png.into_inner() })
}

fn shown_by_browsers(bytes: &[u8]) -> Option<&'static str> {
    match image::guess_format(bytes).ok()? {
        ImageFormat::Png => Some("image/png"),
        ImageFormat::Jpeg => Some("image/jpeg"),
        ImageFormat::WebP => Some("image/webp"),
        ImageFormat::Gif => Some("image/gif"),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn large_images_are_reduced_and_keep_their_shape() {
        let noise = image::RgbImage::from_fn(600, 300, |x, y| {
            image::Rgb([(x * 7 % 251) as u8, (y * 13 % 241) as u8, (x * y % 239) as u8])
        });
        let mut png = Cursor::new(Vec::new());
        noise.write_to(&mut png, ImageFormat::Png).unwrap();
        let small = picture(&png.into_inner()).unwrap();
        let decoded = image::load_from_memory(&small.bytes).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (144, 72));
        assert_eq!(picture(b"no image"), None);
    }
}
