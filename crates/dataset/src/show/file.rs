//! The file that samples are shown in: its name says which form it has.

use std::path::Path;

use super::{Shown, sheet, to_html};
use crate::Error;

/// Longest side of a picture on a page, in pixels: twice what is shown, for sharp displays.
const PAGE_SIDE: u32 = 260;

/// Forms in which samples are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One picture, as PNG.
    Png,
    /// One picture, as JPEG.
    Jpeg,
    /// A page.
    Html,
}

impl Form {
    /// Returns the form that the name of a file asks for.
    ///
    /// # Errors
    /// [`Error::Asked`] for another extension than those of the forms.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            Some("png") => Ok(Self::Png),
            Some("jpg" | "jpeg") => Ok(Self::Jpeg),
            Some("html" | "htm") => Ok(Self::Html),
            _ => Err(Error::Asked {
                what: format!("{} does not say what it is to be", path.display()),
                remedy: "name a file that ends in .png, .jpg or .html".to_owned(),
            }),
        }
    }

    /// Returns how large pictures are in this form, at most.
    pub fn side(self) -> u32 {
        match self {
            Self::Png | Self::Jpeg => sheet::SIDE,
            Self::Html => PAGE_SIDE,
        }
    }

    /// Returns the bytes of the file.
    ///
    /// # Errors
    /// [`Error::Asked`] for more samples than a picture takes.
    pub fn bytes(self, title: &str, samples: &[Shown]) -> Result<Vec<u8>, Error> {
        match self {
            Self::Html => Ok(to_html(title, samples).into_bytes()),
            Self::Png | Self::Jpeg => sheet::encode(&sheet::draw(samples), self == Self::Jpeg),
        }
    }
}

/// Writes a file.
///
/// # Errors
/// [`Error::File`].
pub fn save(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::File { path: path.display().to_string(), source };
    std::fs::write(path, bytes).map_err(failed)
}
