//! Writes Parquet files, column by column.

use std::path::Path;
use std::sync::Arc;

use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

pub(super) const PLAIN: &str = "message m {
    optional binary ignored; optional binary image; optional binary caption (STRING); }";
pub(super) const STRUCT: &str = "message m {
    optional group image { optional binary bytes; optional binary path (STRING); }
    optional group text (LIST) { repeated group list { optional binary element (STRING); } } }";
pub(super) const LINKS: &str = "message m {
    required binary url (STRING); required binary title (STRING); }";

/// The values of a leaf column in a row group, with their levels.
#[derive(Debug, Default, Clone)]
pub(super) struct Leaf {
    values: Vec<ByteArray>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

impl Leaf {
    fn push(&mut self, value: Option<Vec<u8>>, definition: i16, repetition: i16) {
        self.values.extend(value.map(ByteArray::from));
        self.definition.push(definition);
        self.repetition.push(repetition);
    }
}

/// Returns an optional column.
pub(super) fn optional<V: Into<Vec<u8>>>(rows: impl IntoIterator<Item = Option<V>>) -> Leaf {
    let mut leaf = Leaf::default();
    for row in rows {
        let definition = i16::from(row.is_some());
        leaf.push(row.map(Into::into), definition, 0);
    }
    leaf
}

/// Returns an optional member of an optional struct: the outer `None` is a struct that is null.
pub(super) fn member<V: Into<Vec<u8>>>(rows: impl IntoIterator<Item = Option<Option<V>>>) -> Leaf {
    let mut leaf = Leaf::default();
    for row in rows {
        let definition = row.as_ref().map_or(0, |member| 1 + i16::from(member.is_some()));
        leaf.push(row.flatten().map(Into::into), definition, 0);
    }
    leaf
}

/// Returns an optional list of optional texts.
pub(super) fn lists<'a>(rows: impl IntoIterator<Item = Option<Vec<Option<&'a str>>>>) -> Leaf {
    let mut leaf = Leaf::default();
    for row in rows {
        match row {
            None => leaf.push(None, 0, 0),
            Some(list) if list.is_empty() => leaf.push(None, 1, 0),
            Some(list) => {
                for (place, text) in list.into_iter().enumerate() {
                    let definition = 2 + i16::from(text.is_some());
                    leaf.push(
                        text.map(|text| text.as_bytes().to_vec()),
                        definition,
                        i16::from(place > 0),
                    );
                }
            }
        }
    }
    leaf
}

/// Returns settings of pages that hold so many rows; an offset index is written with them.
pub(super) fn pages(rows: usize) -> WriterPropertiesBuilder {
    let batches = WriterProperties::builder().set_write_batch_size(rows);
    batches.set_data_page_row_count_limit(rows).set_dictionary_enabled(false)
}

/// Returns settings that write no offset index.
pub(super) fn unindexed() -> WriterPropertiesBuilder {
    use ::parquet::file::properties::EnabledStatistics;
    let plain = WriterProperties::builder().set_statistics_enabled(EnabledStatistics::None);
    plain.set_offset_index_disabled(true)
}

/// Returns a file of these row groups, each with all leaf columns of the schema.
pub(super) fn bytes(
    schema: &str,
    properties: WriterPropertiesBuilder,
    groups: &[Vec<Leaf>],
) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(properties.build());
    let mut file = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
    for leaves in groups {
        let mut group = file.next_row_group().unwrap();
        for Leaf { values, definition, repetition } in leaves {
            let mut column = group.next_column().unwrap().unwrap();
            let typed = column.typed::<ByteArrayType>();
            typed.write_batch(values, Some(definition), Some(repetition)).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    file.into_inner().unwrap()
}

/// Writes such a file and returns its path.
pub(super) fn write(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    path.display().to_string()
}

/// Returns the columns of [`PLAIN`] for rows that have both image and caption.
pub(super) fn plain(rows: &[(Vec<u8>, String)]) -> Vec<Leaf> {
    vec![
        optional(rows.iter().map(|_| Some(vec![7_u8; 40]))),
        optional(rows.iter().map(|(image, _)| Some(image.clone()))),
        optional(rows.iter().map(|(_, caption)| Some(caption.clone()))),
    ]
}
