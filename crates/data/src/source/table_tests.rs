//! Rows of texts of every kind.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;

use ::csv::{Terminator, WriterBuilder};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::store::Stores;

/// A table in a file that is there as long as the table.
struct Opened {
    table: Table,
    _file: tempfile::NamedTempFile,
}

impl std::ops::Deref for Opened {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

/// Opens a table that is in a file, compressed or not.
fn table(bytes: &[u8], separator: u8, compressed: bool) -> Result<Opened, Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    if compressed {
        let mut packed = GzEncoder::new(&mut file, Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap();
    } else {
        file.write_all(bytes).unwrap();
    }
    let object = Stores::default().object(&file.path().display().to_string()).unwrap();
    let table = Table::open(Text::open(object)?, separator)?;
    Ok(Opened { table, _file: file })
}

type Found = (u64, u64, Vec<Vec<u8>>);

fn rows(table: &Table) -> Result<Vec<Found>, Error> {
    let mut rows = Vec::new();
    let count = table.scan(|row| {
        rows.push((row.start, row.line, row.fields.iter().map(<[u8]>::to_vec).collect()));
    })?;
    assert_eq!(count, rows.len() as u64);
    Ok(rows)
}

/// Returns the rows from the one at `place` on, parsed from there.
fn parsed(table: &Table, rows: &[Found], place: usize) -> Vec<(u64, Vec<Vec<u8>>)> {
    let (start, line, _) = rows[place];
    let part = table.text.part(start..table.text.len(), &CancellationToken::new()).unwrap();
    let cells = |fields: ByteRecord| fields.iter().map(<[u8]>::to_vec).collect();
    table.parse(&part, line).map(|(line, fields)| (line, cells(fields))).collect()
}

#[test]
fn quotes_hold_separators_ends_of_lines_and_quotes() {
    let text = "\u{feff}a,b\r\n1,\"x, y\"\r\n\r\n2,\"two\r\nlines\"\r\n  \r\n3,\"a \"\"b\"\"\"";
    let table = table(text.as_bytes(), b',', false).unwrap();
    assert_eq!((table.column("a"), table.column("b"), table.column("c")), (Some(0), Some(1), None));
    let rows = rows(&table).unwrap();
    let expected = [(2, ["1", "x, y"]), (4, ["2", "two\r\nlines"]), (7, ["3", "a \"b\""])];
    let found = parsed(&table, &rows, 0);
    assert_eq!(found.len(), expected.len());
    for ((line, fields), (expected_line, expected)) in found.iter().zip(expected) {
        let fields: Vec<&str> = fields.iter().map(|f| std::str::from_utf8(f).unwrap()).collect();
        assert_eq!((*line, fields.as_slice()), (expected_line, &expected[..]));
    }
    for place in 0..rows.len() {
        assert_eq!(parsed(&table, &rows, place), found[place..], "from row {place} on");
    }
}

#[test]
fn a_quote_that_is_never_closed_is_an_error_with_its_line() {
    for text in ["a\tb\n1\tx\n2\t\"y\n3\tz\n", "a\tb\n1\tx\n2\t\"y"] {
        let error = rows(&table(text.as_bytes(), b'\t', false).unwrap()).unwrap_err().to_string();
        assert!(error.contains("quote (\") on line 3"), "{error}");
    }
    let error = table(b"\"a\tb\n1\t2\n", b'\t', false).err().unwrap().to_string();
    assert!(error.contains("on line 1"), "{error}");
    // One inside of a field is a character as others are.
    assert_eq!(rows(&table(b"a\tb\n1\t5\" wide\n", b'\t', false).unwrap()).unwrap().len(), 1);
}

/// The whole rest of the file would be read into the memory.
#[test]
fn a_row_without_an_end_is_given_up() {
    let mut text = b"a\tb\n1\t\"".to_vec();
    text.resize(text.len() + 2 * LONGEST_ROW as usize, b'x');
    let error = rows(&table(&text, b'\t', true).unwrap()).unwrap_err().to_string();
    assert!(error.contains("the row on line 2 does not end within 16777216 bytes"), "{error}");
}

#[test]
fn a_compressed_table_that_is_damaged_says_so() {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&b"a\tb\n1\t2\n".repeat(1000)).unwrap();
    let mut packed = packed.finish().unwrap();
    packed.truncate(packed.len() - 9);
    let error = table(&packed, b'\t', false).err().unwrap().to_string();
    assert!(error.contains("compressed by gzip, and damaged after"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_a_writer_of_csv_writes_is_read_wherever_reading_begins(
        cells in prop::collection::vec("[ab\"\t,;\r\nü]{1,8}", 2..60),
        separator in prop::sample::select(&b"\t,;"[..]),
        crlf: bool,
        compressed: bool,
    ) {
        let terminator = if crlf { Terminator::CRLF } else { Terminator::Any(b'\n') };
        let mut how = WriterBuilder::new();
        let mut writer = how.delimiter(separator).terminator(terminator).from_writer(Vec::new());
        writer.write_record(["image", "caption"]).unwrap();
        let written: Vec<Vec<Vec<u8>>> =
            cells.chunks_exact(2).map(|row| row.iter().map(|c| c.clone().into()).collect()).collect();
        for row in &written {
            writer.write_record(row).unwrap();
        }
        let table = table(&writer.into_inner().unwrap(), separator, compressed).unwrap();
        let rows = rows(&table).unwrap();
        let found: Vec<_> = rows.iter().map(|(_, _, fields)| fields.clone()).collect();
        prop_assert_eq!(&found, &written);
        let all = parsed(&table, &rows, 0);
        for place in 0..rows.len() {
            let rest = parsed(&table, &rows, place);
            prop_assert_eq!(&rest[..], &all[place..]);
            prop_assert_eq!(&rest[0].1, &written[place]);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_and_every_reading_finds_the_same_rows(
        bytes in prop::collection::vec(
            prop_oneof![prop::sample::select(&b"a \"\"\t\t\r\n\n\xef\xbb\xbf\0"[..]), any::<u8>()], 0..400),
    ) {
        let Ok(table) = table(&bytes, b'\t', false) else { return Ok(()) };
        let Ok(rows) = rows(&table) else { return Ok(()) };
        for (place, (_, _, fields)) in rows.iter().enumerate() {
            let rest = parsed(&table, &rows, place);
            prop_assert_eq!(rest.len(), rows.len() - place);
            // A byte order mark is dropped where reading begins.
            if !fields[0].starts_with(b"\xef\xbb\xbf") {
                prop_assert_eq!(&rest[0].1, fields);
            }
        }
    }
}
