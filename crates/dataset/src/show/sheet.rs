//! Samples side by side in one picture, captions below them.

use std::convert::Infallible;

use embedded_graphics::Drawable as _;
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::{
    MonoFont, MonoTextStyle, iso_8859_1, iso_8859_2, iso_8859_5, iso_8859_7, iso_8859_9,
};
use embedded_graphics::pixelcolor::{Rgb888, RgbColor as _};
use embedded_graphics::text::{Baseline, Text};
use ringmaster_inputs::image::RgbImage;

use super::Shown;
use crate::{Error, picture};

/// Longest side of a picture on the sheet, in pixels.
pub const SIDE: u32 = 168;
/// Pixels between cells, and around a cell's content.
const GAP: u32 = 10;
const PADDING: u32 = 8;
/// Lines of a caption.
const LINES: u32 = 3;
/// What ends a caption that is longer.
const DOTS: &str = "...";
/// Columns and rows of a character.
const CHARACTER: (u32, u32) = (7, 14);
const BACKGROUND: [u8; 3] = [236, 238, 242];
const CELL: [u8; 3] = [255, 255, 255];
const TEXT: Rgb888 = Rgb888::new(30, 34, 42);
const TROUBLE: Rgb888 = Rgb888::new(179, 64, 31);
/// Fonts, by the scripts they have: the first that has all characters of a caption is taken.
const FONTS: [&MonoFont<'static>; 5] = [
    &iso_8859_1::FONT_7X13,
    &iso_8859_2::FONT_7X13,
    &iso_8859_5::FONT_7X13,
    &iso_8859_7::FONT_7X13,
    &iso_8859_9::FONT_7X13,
];

/// Returns all samples in one picture, about one and a half times as wide as high. Letters of Latin, Cyrillic and Greek
/// scripts are drawn, others as question marks: a page shows them all.
pub fn draw(samples: &[Shown]) -> RgbImage {
    let (cell, count) = (cell_size(), samples.len().max(1) as u32);
    let columns = columns(count, cell);
    let rows = count.div_ceil(columns);
    let size = (columns * (cell.0 + GAP) + GAP, rows * (cell.1 + GAP) + GAP);
    let mut canvas = Canvas::new(size);
    for (number, sample) in (0..).zip(samples) {
        let (column, row) = (number % columns, number / columns);
        canvas.cell(sample, GAP + column * (cell.0 + GAP), GAP + row * (cell.1 + GAP));
    }
    RgbImage::from_raw(size.0, size.1, canvas.pixels)
        .expect("the canvas has the size of its pixels")
}

/// Returns the sheet as PNG, or as JPEG where the file's name says so.
///
/// # Errors
/// [`Error::Asked`] where the encoder takes no picture of this size.
pub fn encode(sheet: &RgbImage, as_jpeg: bool) -> Result<Vec<u8>, Error> {
    let refused = |reason: String| Error::Asked {
        what: format!("a sheet of {} x {} pixels: {reason}", sheet.width(), sheet.height()),
        remedy: "show fewer samples".to_owned(),
    };
    if as_jpeg {
        picture::jpeg(sheet, 92).map_err(|error| refused(error.to_string()))
    } else {
        picture::png(sheet).map_err(|error| refused(error.to_string()))
    }
}

/// Returns how many cells stand side by side: of the numbers that make a sheet one and a half times as wide as high,
/// about, the one that leaves the fewest places empty.
fn columns(count: u32, cell: (u32, u32)) -> u32 {
    let wide = f64::from(count) * 1.5 * f64::from(cell.1) / f64::from(cell.0);
    let best = (wide.sqrt().round() as u32).clamp(1, count);
    let near = best.saturating_sub(2).max(1)..=(best + 2).min(count);
    let empty = |columns: u32| columns * count.div_ceil(columns) - count;
    near.min_by_key(|&columns| (empty(columns), columns.abs_diff(best))).unwrap_or(best)
}

fn cell_size() -> (u32, u32) {
    (SIDE + 2 * PADDING, SIDE + 3 * PADDING + LINES * CHARACTER.1)
}

/// Pixels that are drawn on.
struct Canvas {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Canvas {
    fn new((width, height): (u32, u32)) -> Self {
        let pixels = BACKGROUND.repeat(width as usize * height as usize);
        Self { width, height, pixels }
    }

    fn cell(&mut self, sample: &Shown, left: u32, top: u32) {
        let (width, height) = cell_size();
        let row = CELL.repeat(width as usize);
        (0..height).for_each(|y| self.row(left, top + y, &row));
        let (text, colour) = match &sample.picture {
            Ok(picture) => {
                self.picture(picture, left + PADDING, top + PADDING);
                (sample.caption(), TEXT)
            }
            Err(reason) => (reason.as_str(), TROUBLE),
        };
        let text_top = top + SIDE + 2 * PADDING;
        let font = font_of(text);
        for (number, line) in (0..).zip(lines(text)) {
            let place =
                Point::new((left + PADDING) as i32, (text_top + number * CHARACTER.1) as i32);
            let style = MonoTextStyle::new(font, colour);
            let Ok(_) = Text::with_baseline(&line, place, style, Baseline::Top).draw(self);
        }
    }

    /// Copies a picture into the middle of a square.
    fn picture(&mut self, picture: &RgbImage, left: u32, top: u32) {
        let (width, height) = picture.dimensions();
        let (left, top) =
            (left + SIDE.saturating_sub(width) / 2, top + SIDE.saturating_sub(height) / 2);
        let rows = picture.as_raw().chunks_exact(width as usize * 3);
        for (y, row) in (0..).zip(rows) {
            self.row(left, top + y, row);
        }
    }

    fn row(&mut self, left: u32, y: u32, row: &[u8]) {
        let start = (y as usize * self.width as usize + left as usize) * 3;
        self.pixels[start..start + row.len()].copy_from_slice(row);
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width, self.height)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Infallible>
    where
        I: IntoIterator<Item = Pixel<Rgb888>>,
    {
        for Pixel(Point { x, y }, colour) in pixels {
            let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { continue };
            if x < self.width && y < self.height {
                self.row(x, y, &[colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

fn font_of(text: &str) -> &'static MonoFont<'static> {
    let has_all = |font: &&&MonoFont<'static>| {
        let question = font.glyph_mapping.index('?');
        text.chars()
            .all(|c| c == '?' || c.is_whitespace() || font.glyph_mapping.index(c) != question)
    };
    FONTS.iter().find(has_all).copied().unwrap_or(FONTS[0])
}

/// Returns a caption in lines that fit a cell, broken between words where they are short enough.
fn lines(text: &str) -> Vec<String> {
    let (columns, most) = ((SIDE / CHARACTER.0) as usize, LINES as usize);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        append(&mut lines, word, columns);
        if lines.len() > most {
            lines.truncate(most);
            let last = lines.last_mut().expect("some lines are kept");
            let start: String = last.chars().take(columns - DOTS.len()).collect();
            *last = format!("{}{DOTS}", start.trim_end());
            break;
        }
    }
    lines
}

/// Appends a word to the last line, or to new ones where it does not fit.
fn append(lines: &mut Vec<String>, word: &str, columns: usize) {
    let mut word: Vec<char> = word.chars().map(plain).collect();
    loop {
        let line = lines.last_mut().expect("there is one from the start");
        let used = line.chars().count();
        let space = (used > 0).then_some(' ');
        if used + usize::from(space.is_some()) + word.len() <= columns {
            line.extend(space);
            line.extend(&word);
            return;
        }
        if used == 0 {
            line.extend(word.drain(..columns));
        }
        lines.push(String::new());
    }
}

/// Returns the character that fonts have of those that look alike.
fn plain(c: char) -> char {
    match c {
        '’' | '‘' => '\'',
        '“' | '”' | '„' => '"',
        '–' | '—' => '-',
        c if c.is_control() => ' ',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_break_between_words_and_end_in_dots() {
        let columns = (SIDE / CHARACTER.0) as usize;
        assert_eq!(lines("a red apple"), ["a red apple"]);
        assert_eq!(lines(""), [""]);
        for text in ["word ".repeat(60), "x".repeat(500), "ab ".repeat(200), "日本 ".repeat(99)] {
            let broken = lines(&text);
            assert_eq!(broken.len(), LINES as usize);
            assert!(broken.iter().all(|line| line.chars().count() <= columns), "{broken:?}");
            assert!(broken.iter().last().is_some_and(|line| line.ends_with("...")), "{broken:?}");
        }
    }

    #[test]
    fn fonts_are_chosen_by_the_letters_of_a_caption() {
        for text in ["Äpfel?", "яблоко", "μήλο", "jabłko"] {
            let mapping = font_of(text).glyph_mapping;
            let unknown = mapping.index('?');
            let letters = text.chars().filter(|&c| c != '?');
            assert!(letters.into_iter().all(|c| mapping.index(c) != unknown), "{text}");
        }
        // No font has these: they are question marks of the first.
        assert_eq!(font_of("リンゴ").glyph_mapping.index('ß'), FONTS[0].glyph_mapping.index('ß'));
    }

    #[test]
    fn a_sheet_has_a_cell_for_every_sample() {
        let sample = |picture| Shown {
            key: "a/b".to_owned(),
            captions: vec!["caption".to_owned()],
            size: None,
            picture,
        };
        let red = RgbImage::from_fn(SIDE, 3, |_, _| [255, 0, 0]);
        for count in [0, 1, 7, 60] {
            let samples: Vec<_> = (0..count).map(|_| sample(Ok(red.clone()))).collect();
            let sheet = draw(&samples);
            let pixels = sheet.as_raw().chunks_exact(3).filter(|pixel| *pixel == [255, 0, 0]);
            assert_eq!(pixels.count(), count * SIDE as usize * 3);
        }
        assert_eq!([60, 7, 1].map(|count| columns(count, cell_size())), [10, 4, 1]);
        let broken = draw(&[sample(Err("it is cut short".to_owned()))]);
        let trouble = [TROUBLE.r(), TROUBLE.g(), TROUBLE.b()];
        assert!(broken.as_raw().chunks_exact(3).any(|pixel| pixel == trouble));
    }
}
