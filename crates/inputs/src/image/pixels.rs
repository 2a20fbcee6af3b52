//! An image in memory.

/// Rows of pixels of one byte each for red, green and blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    values: Vec<u8>,
}

impl RgbImage {
    /// Returns an image of `width` × `height` pixels from its values, row by row; none if their
    /// number is another than 3 · `width` · `height`.
    pub fn from_raw(width: u32, height: u32, values: Vec<u8>) -> Option<Self> {
        let expected = u64::from(width) * u64::from(height) * 3;
        (values.len() as u64 == expected).then_some(Self { width, height, values })
    }

    /// Returns a black image.
    pub fn new(width: u32, height: u32) -> Self {
        Self { width, height, values: vec![0; width as usize * height as usize * 3] }
    }

    /// Returns the image whose pixel in column x and row y is `pixel(x, y)`.
    pub fn from_fn(width: u32, height: u32, mut pixel: impl FnMut(u32, u32) -> [u8; 3]) -> Self {
        let mut values = Vec::with_capacity(width as usize * height as usize * 3);
        for y in 0..height {
            for x in 0..width {
                values.extend(pixel(x, y));
            }
        }
        Self { width, height, values }
    }

    /// Returns the number of columns.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Returns the number of rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Returns the numbers of columns and rows.
    pub fn dimensions(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Returns red, green and blue of the pixel in column `x` and row `y`.
    ///
    /// # Panics
    /// Panics if the image has no such pixel.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        assert!(x < self.width, "column {x} of {}", self.width);
        let start = (y as usize * self.width as usize + x as usize) * 3;
        [self.values[start], self.values[start + 1], self.values[start + 2]]
    }

    /// Returns all values, row by row.
    pub fn as_raw(&self) -> &[u8] {
        &self.values
    }
}
