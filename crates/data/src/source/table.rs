//! A table as text: CSV and what is like it, read as pandas reads it.
//!
//! The first line names the columns. A field in quotes may hold separators, ends of lines and, doubled, quotes; lines
//! end with LF, CR LF or CR; empty lines are no rows; a byte order mark is no part of the first name.

use std::io::Read;

use ::csv::{ByteRecord, Reader, ReaderBuilder};
use ringmaster_weights::found;
use ringmaster_words as words;
use tokio_util::sync::CancellationToken;

use super::text::{Stream, Text};
use crate::Error;

/// Bytes of the longest row: what is longer is a quote that nobody closed.
const LONGEST_ROW: u64 = 16 << 20;
/// Columns of a table that an error shows, and characters of each.
const SHOWN: usize = 12;
const SHOWN_CHARS: usize = 60;
/// What separates fields, in tables of which the manifest says something else.
const SEPARATORS: [u8; 4] = [b'\t', b',', b';', b'|'];

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) text: Text,
    separator: u8,
    columns: Vec<String>,
}

/// A row, and where it stands.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Offset in the text from which it can be parsed again.
    pub(super) start: u64,
    /// Number of the line that this offset is in, from 1.
    pub(super) line: u64,
    pub(super) fields: &'a ByteRecord,
}

impl Table {
    /// Opens a table and reads the names of its columns.
    ///
    /// # Errors
    /// [`Error::Empty`] for a file without any; a store that fails.
    pub(super) fn open(text: Text, separator: u8) -> Result<Self, Error> {
        let mut table = Self { text, separator, columns: Vec::new() };
        let mut rows = table.rows();
        let Some((start, line)) = rows.next()? else {
            let reason = "an empty file, without the line that names its columns".to_owned();
            return Err(Error::Empty { url: table.text.url().to_owned(), reason });
        };
        let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let columns: Vec<String> = rows.record.iter().map(name).collect();
        if rows.is_last() {
            table.check_end(start, line)?;
        }
        table.columns = columns;
        Ok(table)
    }

    /// Returns the number of columns.
    pub(super) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Returns which column has a name, if one has.
    pub(super) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// Returns which column has the name that `key` of the manifest says.
    ///
    /// # Errors
    /// [`Error::Column`], which says what to change.
    pub(super) fn named_by(&self, key: &str, name: &str) -> Result<usize, Error> {
        self.column(name).ok_or_else(|| Error::Column {
            url: self.text.url().to_owned(),
            column: name.to_owned(),
            columns: self.shown_columns(),
            remedy: self.remedy(key),
        })
    }

    /// Returns the names of the columns, for people.
    pub(super) fn shown_columns(&self) -> String {
        let shown = |name: &String| format!("{:?}", clipped(name));
        let shown: Vec<String> = self.columns.iter().map(shown).collect();
        words::some_of(&shown, SHOWN)
    }

    fn remedy(&self, key: &str) -> String {
        let start = 0..self.text.len().min(found::BEGINNING as u64);
        let start = self.text.part(start, &CancellationToken::new()).unwrap_or_default();
        if let Some(what) = found::described(&start) {
            return format!("it is {what}");
        }
        let other = SEPARATORS.into_iter().find(|other| match self.columns.as_slice() {
            [only] => *other != self.separator && only.as_bytes().contains(other),
            _ => false,
        });
        match other {
            Some(other) => format!(
                "its fields seem to be separated by {:?}: set data.csv_separator to it",
                char::from(other)
            ),
            None => format!("set {key} to the name of its column"),
        }
    }

    /// Tells `each` of every row, in order; returns how many there are.
    ///
    /// # Errors
    /// A quote that is never closed, [`Error::Replaced`], a store that fails.
    pub(super) fn scan(&self, mut each: impl FnMut(&Row<'_>)) -> Result<u64, Error> {
        let mut rows = self.rows();
        let mut last = rows.next()?.unwrap_or((0, 1));
        let mut count = 0;
        while let Some((start, line)) = rows.next()? {
            each(&Row { start, line, fields: &rows.record });
            count += 1;
            last = (start, line);
        }
        self.check_end(last.0, last.1)?;
        Ok(count)
    }

    /// Returns the rows, and the number of the line that each begins on, of a part of the text that begins with the
    /// row in `line`.
    pub(super) fn parse(&self, part: &[u8], line: u64) -> impl Iterator<Item = (u64, ByteRecord)> {
        let mut reader = reader(self.separator, part);
        let (mut passed, mut line) = (0, line);
        std::iter::from_fn(move || {
            let mut record = ByteRecord::new();
            let start = next_record(&mut reader, &mut record, self.columns.len());
            let start = start.expect("bytes in memory can be read")?.0 as usize;
            // What ends the line before may stand in front of the row.
            let ends = part[start..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
            let start = start + ends.count();
            line += part[passed..start].iter().filter(|byte| **byte == b'\n').count() as u64;
            passed = start;
            Some((line, record))
        })
    }

    /// Finds a quote that the last row opens and never closes: all rows after it would be taken for one field.
    fn check_end(&self, start: u64, line: u64) -> Result<(), Error> {
        let mut text = self.text.part(start..self.text.len(), &CancellationToken::new())?.to_vec();
        // One more row, unless it is inside of the quotes.
        text.extend_from_slice(b"\nx");
        let mut reader = reader(self.separator, text.as_slice());
        if reader.byte_records().count() < 2 {
            return Err(self.unclosed(line));
        }
        Ok(())
    }

    fn unclosed(&self, line: u64) -> Error {
        let reason = format!(
            "a field that begins with a quote (\") on line {line}, or after it, has no quote at its end; close or \
             remove it (inside of quotes, one is written \"\")"
        );
        Error::Unreadable { url: self.text.url().to_owned(), reason }
    }

    fn endless(&self, line: u64) -> Error {
        let reason = format!(
            "the row on line {line} does not end within {LONGEST_ROW} bytes; is there a quote (\") that is never \
             closed, or is it no table?"
        );
        Error::Unreadable { url: self.text.url().to_owned(), reason }
    }

    fn rows(&self) -> Rows<'_> {
        let reader = reader(self.separator, self.text.stream());
        Rows { table: self, reader, record: ByteRecord::new() }
    }
}

/// The rows of a table from its beginning, the names of the columns first.
struct Rows<'a> {
    table: &'a Table,
    reader: Reader<Stream<'a>>,
    record: ByteRecord,
}

impl Rows<'_> {
    /// Reads the next row into `record`; returns where it starts, and on which line.
    fn next(&mut self) -> Result<Option<(u64, u64)>, Error> {
        let (byte, line) = (self.reader.position().byte(), self.reader.position().line());
        self.reader.get_mut().read_at_most(byte + LONGEST_ROW);
        let columns = self.table.columns.len();
        next_record(&mut self.reader, &mut self.record, columns).map_err(|_| {
            let failed = self.reader.get_mut().failed.take();
            failed.unwrap_or_else(|| self.table.endless(line))
        })
    }

    fn is_last(&self) -> bool {
        self.reader.is_done() || self.reader.position().byte() >= self.table.text.len()
    }
}

fn reader<R: Read>(separator: u8, text: R) -> Reader<R> {
    let mut how = ReaderBuilder::new();
    how.delimiter(separator).has_headers(false).flexible(true).buffer_capacity(1 << 16);
    how.from_reader(text)
}

/// Reads the next row that is not an empty line; returns where it starts, and on which line.
fn next_record<R: Read>(
    reader: &mut Reader<R>,
    record: &mut ByteRecord,
    columns: usize,
) -> Result<Option<(u64, u64)>, ::csv::Error> {
    loop {
        let (start, line) = (reader.position().byte(), reader.position().line());
        if !reader.read_byte_record(record)? {
            return Ok(None);
        }
        let is_blank = columns != 1 && record.len() == 1 && record[0].trim_ascii().is_empty();
        if !is_blank {
            return Ok(Some((start, line)));
        }
    }
}

fn clipped(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
