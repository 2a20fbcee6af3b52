//! One file with the captions of a folder's images, as Hugging Face's ImageFolder has it: `metadata.csv`, or
//! `metadata.jsonl` with an object in each line; `file_name` says which image a row is for.

use std::io::{BufRead as _, BufReader};
use std::ops::Range;

use tokio_util::sync::CancellationToken;

use super::captions;
use super::table::Table;
use super::text::Text;
use crate::Error;
use crate::store::Object;

/// Names of the file, the one that counts first.
pub(super) const NAMES: [&str; 2] = ["metadata.csv", "metadata.jsonl"];
/// Column of the image's name, and of its caption where the manifest names no other that is there.
const FILE_NAME: &str = "file_name";
const TEXT: &str = "text";
/// Bytes of the longest line.
const LONGEST_LINE: u64 = 16 << 20;

/// See the module.
#[derive(Debug)]
pub(super) enum Metadata {
    /// `metadata.csv`.
    Table { table: Table, file_name: usize, caption: usize },
    /// `metadata.jsonl`, and the fields of captions, joined by `;`.
    Lines { text: Text, fields: String },
}

impl Metadata {
    /// Opens a file of [`NAMES`]; returns why it holds no captions, where it does not. The captions are in the column
    /// `caption_key`, or else in `text`.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn open(file: Object, caption_key: &str) -> Result<Result<Self, String>, Error> {
        let name = file.file_name();
        let text = Text::open_here(file)?;
        if name == NAMES[1] {
            return Ok(Ok(Self::Lines { text, fields: format!("{caption_key};{TEXT}") }));
        }
        let table = match Table::open(text, b',') {
            Ok(table) => table,
            Err(Error::Empty { reason, .. }) => return Ok(Err(format!("{name} is {reason}"))),
            Err(error) => return Err(error),
        };
        let caption = table.column(caption_key).or_else(|| table.column(TEXT));
        let (Some(file_name), Some(caption)) = (table.column(FILE_NAME), caption) else {
            let columns = table.shown_columns();
            return Ok(Err(format!(
                "{name} lacks the column {FILE_NAME:?}, or {caption_key:?} or {TEXT:?} with captions; it has {columns}"
            )));
        };
        Ok(Ok(Self::Table { table, file_name, caption }))
    }

    /// Tells `each` of every row that has a caption: the image's name, and where the row is in the text.
    ///
    /// # Errors
    /// When the store fails; a table with a quote that is never closed.
    pub(super) fn scan(&self, each: impl FnMut(&str, Range<u64>)) -> Result<(), Error> {
        match self {
            Self::Table { table, file_name, caption } => {
                scan_table(table, *file_name, *caption, each)
            }
            Self::Lines { text, fields } => scan_lines(text, fields, each),
        }
    }

    /// Returns the caption or captions of a row.
    ///
    /// # Errors
    /// When the store fails; inside, what is wrong with the row.
    pub(super) fn captions(
        &self,
        row: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Result<Vec<String>, String>, Error> {
        match self {
            Self::Table { table, caption, .. } => {
                let part = table.text.part(row, cancel)?;
                let fields = table.parse(&part, 1).next().map(|(_, fields)| fields);
                let cell = fields.as_ref().and_then(|fields| fields.get(*caption));
                Ok(captions::of_text(cell.unwrap_or_default()))
            }
            Self::Lines { text, fields } => Ok(captions::of_json(&text.part(row, cancel)?, fields)),
        }
    }
}

fn scan_table(
    table: &Table,
    file_name: usize,
    caption: usize,
    mut each: impl FnMut(&str, Range<u64>),
) -> Result<(), Error> {
    // A row ends where the next one begins.
    let mut last: Option<(String, u64)> = None;
    table.scan(|row| {
        if let Some((name, start)) = last.take() {
            each(&name, start..row.start);
        }
        let has_caption = row.fields.get(caption).is_some_and(|cell| !cell.trim_ascii().is_empty());
        let name = row.fields.get(file_name).and_then(|name| std::str::from_utf8(name).ok());
        last = name.filter(|_| has_caption).map(|name| (name.to_owned(), row.start));
    })?;
    if let Some((name, start)) = last {
        each(&name, start..table.text.len());
    }
    Ok(())
}

fn scan_lines(
    text: &Text,
    fields: &str,
    mut each: impl FnMut(&str, Range<u64>),
) -> Result<(), Error> {
    let mut lines = BufReader::new(text.stream());
    let (mut line, mut start, mut number, mut bad) = (Vec::new(), 0, 0_u64, None);
    loop {
        line.clear();
        number += 1;
        lines.get_mut().read_at_most(start + LONGEST_LINE);
        let read = lines.read_until(b'\n', &mut line);
        let n = read.map_err(|_| {
            lines.get_mut().failed.take().unwrap_or_else(|| Error::Unreadable {
                url: text.url().to_owned(),
                reason: format!("line {number} does not end within {LONGEST_LINE} bytes"),
            })
        })?;
        if n == 0 {
            break;
        }
        let row = start..start + n as u64;
        start = row.end;
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<serde_json::Value>(&line) {
            Ok(json) if captions::of_json(&line, fields).is_ok() => {
                if let Some(name) = json[FILE_NAME].as_str() {
                    each(name, row);
                }
            }
            Ok(_) => {}
            Err(error) => drop(bad.get_or_insert((number, error))),
        }
    }
    if let Some((line, error)) = bad {
        tracing::warn!(url = %text.url(), line, %error, "not a JSON object in each line; such lines are left out");
    }
    Ok(())
}
