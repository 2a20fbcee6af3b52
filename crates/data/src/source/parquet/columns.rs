//! Which columns of a file hold image and caption, and in what form.

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::schema::types::{SchemaDescriptor, Type};

use super::Options;

/// The columns that are read of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    /// Name of the image's column.
    pub(super) image_name: String,
    /// Name of the caption's column.
    pub(super) caption_name: String,
    /// The leaf that holds encoded images.
    bytes: Option<usize>,
    /// The leaf that holds URLs or paths of images.
    link: Option<usize>,
    /// The leaf that holds captions: text, or lists of it.
    caption: usize,
}

/// Places among [`Columns::leaves`].
impl Columns {
    /// Returns where encoded images stand, if they do.
    pub(super) fn bytes(&self) -> Option<usize> {
        self.bytes.map(|_| 0)
    }

    /// Returns where links to images stand, if they do.
    pub(super) fn link(&self) -> Option<usize> {
        self.link.map(|_| usize::from(self.bytes.is_some()))
    }

    /// Returns where captions stand.
    pub(super) fn caption(&self) -> usize {
        self.leaves().len() - 1
    }

    /// Returns the numbers of the leaf columns that are read.
    pub(super) fn leaves(&self) -> Vec<usize> {
        self.bytes.into_iter().chain(self.link).chain([self.caption]).collect()
    }

    /// Finds the columns of a file.
    ///
    /// # Errors
    /// What is missing or of a form that cannot be read, and what to do.
    pub(super) fn find(schema: &SchemaDescriptor, options: &Options) -> Result<Self, String> {
        let image = root(schema, &options.img_keys, "image")?;
        let caption = root(schema, &options.caption_keys, "caption")?;
        let (bytes, link) = image_leaves(schema, image)?;
        let name = |root: usize| schema.root_schema().get_fields()[root].name().to_owned();
        Ok(Self {
            image_name: name(image),
            caption_name: name(caption),
            bytes,
            link,
            caption: caption_leaf(schema, caption)?,
        })
    }
}

/// Returns the number of the first column that a file has of several.
fn root(schema: &SchemaDescriptor, keys: &[String], what: &str) -> Result<usize, String> {
    let fields = schema.root_schema().get_fields();
    let found = |key: &String| fields.iter().position(|field| field.name() == key);
    keys.iter().find_map(found).ok_or_else(|| {
        let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        format!(
            "no column for the {what}: looked for {keys:?}, the file has {names:?}; name the one that holds it"
        )
    })
}

/// Returns the leaves of an image's column: of encoded images, and of links.
fn image_leaves(
    schema: &SchemaDescriptor,
    root: usize,
) -> Result<(Option<usize>, Option<usize>), String> {
    let field = &schema.root_schema().get_fields()[root];
    let leaves = leaves(schema, root);
    let usable =
        |leaf: usize| holds_bytes(schema, leaf) && schema.column(leaf).max_rep_level() == 0;
    if field.is_primitive() {
        let Some(&leaf) = leaves.first().filter(|leaf| usable(**leaf)) else {
            return Err(unsuited("image", field, IMAGE_FORMS));
        };
        return Ok(if is_text(field) { (None, Some(leaf)) } else { (Some(leaf), None) });
    }
    let child = |name: &str| {
        let named = |leaf: &usize| schema.column(*leaf).path().parts()[1..] == [name];
        leaves.iter().copied().find(named).filter(|leaf| usable(*leaf))
    };
    match (child("bytes"), child("path")) {
        (None, None) => Err(unsuited("image", field, IMAGE_FORMS)),
        found => Ok(found),
    }
}

/// Returns the leaf of a caption's column.
fn caption_leaf(schema: &SchemaDescriptor, root: usize) -> Result<usize, String> {
    let field = &schema.root_schema().get_fields()[root];
    let forms = "text or a list of texts";
    match leaves(schema, root)[..] {
        [leaf] if holds_bytes(schema, leaf) && schema.column(leaf).max_rep_level() <= 1 => Ok(leaf),
        _ => Err(unsuited("caption", field, forms)),
    }
}

const IMAGE_FORMS: &str =
    "encoded images (binary), URLs or paths (text), or a struct of bytes and path";

fn unsuited(what: &str, field: &Type, forms: &str) -> String {
    let form = match field {
        Type::PrimitiveType { physical_type, .. } => physical_type.to_string(),
        Type::GroupType { fields, .. } => {
            let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
            format!("a group of {names:?}")
        }
    };
    format!("column {:?} is {form}, the {what} is read from {forms}; name another", field.name())
}

/// Returns the leaf columns below a column.
fn leaves(schema: &SchemaDescriptor, root: usize) -> Vec<usize> {
    (0..schema.num_columns()).filter(|leaf| schema.get_column_root_idx(*leaf) == root).collect()
}

fn holds_bytes(schema: &SchemaDescriptor, leaf: usize) -> bool {
    schema.column(leaf).physical_type() == Physical::BYTE_ARRAY
}

/// Whether the bytes of a primitive column are declared to be text.
fn is_text(field: &Type) -> bool {
    let info = field.get_basic_info();
    let logical = info.logical_type_ref();
    matches!(logical, Some(LogicalType::String | LogicalType::Enum))
        || matches!(info.converted_type(), ConvertedType::UTF8 | ConvertedType::ENUM)
}
