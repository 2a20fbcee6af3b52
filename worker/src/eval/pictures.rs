//! Small pictures of evaluation samples for the report.

use super::scores::Picture;
use ringmaster_inputs::image::formats::Format;
use ringmaster_inputs::image::resize::Rect;
use ringmaster_inputs::image::{Filter, Scratch};

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
    let image = ringmaster_inputs::image::decode(bytes).ok()?;
    let longest = image.width().max(image.height()).max(1);
    let side = |length: u32| if longest > SIDE { (length * SIDE / longest).max(1) } else { length };
    let (width, height) = (side(image.width()), side(image.height()));
    let mut scratch = Scratch::default();
    let small = scratch.resize(&image, Rect::of(&image), width, height, Filter::Bilinear).ok()?;
    Some(Picture { media_type: "image/png", bytes: png(small, width, height).ok()? })
}

fn shown_by_browsers(bytes: &[u8]) -> Option<&'static str> {
    Format::of(bytes).map(|format| match format {
        Format::Png => "image/png",
        Format::Jpeg => "image/jpeg",
        Format::WebP => "image/webp",
        Format::Gif => "image/gif",
    })
}

fn png(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn large_images_are_reduced_and_keep_their_shape() {
        let noise = ringmaster_inputs::image::RgbImage::from_fn(600, 300, |x, y| {
            [(x * 7 % 251) as u8, (y * 13 % 241) as u8, (x * y % 239) as u8]
        });
        let small = picture(&png(noise.as_raw(), 600, 300).unwrap()).unwrap();
        let decoded = ringmaster_inputs::image::decode(&small.bytes).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (144, 72));
        assert_eq!(picture(b"no image"), None);
    }
}
