//! Image and captions of rows, from the values of their columns.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::data_type::ByteArray;
use ringmaster_inputs::panics;

use super::columns::Columns;
use super::file::File;
use super::pages::Group;
use super::values::{self, Parts, Values};

/// A row, decoded.
pub(super) struct Row {
    pub(super) image: Image,
    /// At least one.
    pub(super) captions: Vec<String>,
}

/// An encoded image, or where it lies.
pub(super) enum Image {
    Bytes(Bytes),
    /// Its URL or absolute path.
    Link(String),
}

impl Row {
    /// Returns where the image lies, if it is not in the row.
    pub(super) fn link(&self) -> Option<String> {
        match &self.image {
            Image::Link(link) => Some(link.clone()),
            Image::Bytes(_) => None,
        }
    }
}

/// Reads some rows of a group from the bytes that hold them; what is wrong with one stands in its place.
pub(super) fn read(
    file: &File,
    group: &Group,
    places: &Range<u64>,
    parts: Parts,
) -> Vec<Result<Row, String>> {
    let parts = Arc::new(parts);
    let decode = || {
        let chunks = group.chunks.iter();
        chunks.map(|chunk| values::read(chunk, &parts, places, group.rows)).collect()
    };
    let decoded: Result<Vec<Values>, String> = panics::caught(decode).unwrap_or_else(|panic| {
        Err(format!("cannot be decoded: the decoder failed with {:?}", values::shown(&panic)))
    });
    match decoded {
        Ok(columns) => (0..columns[0].rows()).map(|row| of(file, &columns, row)).collect(),
        Err(reason) => places.clone().map(|_| Err(reason.clone())).collect(),
    }
}

/// Returns a row from the values of the columns, which stand in the order of [`Columns::leaves`].
fn of(file: &File, values: &[Values], row: usize) -> Result<Row, String> {
    let columns = &file.columns;
    let captions = captions(columns, values[columns.caption()].of(row))?;
    Ok(Row { image: image(file, values, row)?, captions })
}

fn image(file: &File, values: &[Values], row: usize) -> Result<Image, String> {
    let columns = &file.columns;
    let value = |column: Option<usize>| column.and_then(|column| values[column].of(row).first());
    if let Some(bytes) = value(columns.bytes()) {
        return Ok(Image::Bytes(Bytes::from_owner(bytes.clone())));
    }
    let Some(link) = value(columns.link()) else {
        return Err(format!("no image: column {:?} is null", columns.image_name));
    };
    Ok(Image::Link(file.located(text(&columns.image_name, link)?)?))
}

fn captions(columns: &Columns, values: &[ByteArray]) -> Result<Vec<String>, String> {
    let name = &columns.caption_name;
    if values.is_empty() {
        return Err(format!("no caption: column {name:?} is null or an empty list"));
    }
    values.iter().map(|value| Ok(text(name, value)?.trim().to_owned())).collect()
}

fn text<'a>(column: &str, value: &'a ByteArray) -> Result<&'a str, String> {
    std::str::from_utf8(value.data()).map_err(|error| format!("column {column:?}: {error}"))
}
