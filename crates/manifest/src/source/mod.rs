//! The manifest's text and where in it everything stands.
//!
//! `serde_yaml` gives values without positions; a pass over `saphyr-parser`'s events before it (`build`)
//! rebuilds the tree with a line and a column for every key and value, and refuses what is too large to
//! be read. `hint` adds to a syntax error what people meant.

mod build;
mod hint;

use std::fmt;
use std::rc::Rc;

use serde_yaml::Value;

use crate::error::Problem;
pub(crate) use crate::position::Position;
use crate::{merge, words};

/// One step of a [`Path`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Segment {
    Key(String),
    Index(usize),
}

/// Where a field stands in the document's structure: `spec.eval.zero_shot[0].name`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Path(Vec<Segment>);

impl Path {
    /// Returns the path of dotted keys; list positions cannot be written so.
    pub(crate) fn of(dotted: &str) -> Self {
        Self(dotted.split('.').map(|key| Segment::Key(key.to_owned())).collect())
    }

    pub(crate) fn key(&self, key: &str) -> Self {
        self.with(Segment::Key(key.to_owned()))
    }

    pub(crate) fn index(&self, index: usize) -> Self {
        self.with(Segment::Index(index))
    }

    pub(crate) fn starts_with(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// Returns the value at this path.
    pub(crate) fn find<'v>(
        &self,
        document: &'v serde_yaml::Value,
    ) -> Option<&'v serde_yaml::Value> {
        self.0.iter().try_fold(document, |value, segment| match segment {
            Segment::Key(key) => value.get(key.as_str()),
            Segment::Index(index) => value.get(index),
        })
    }

    fn with(&self, segment: Segment) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment);
        Self(segments)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if position == 0 => f.write_str(&words::short(key))?,
                Segment::Key(key) => write!(f, ".{}", words::short(key))?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// The tree of positions.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    root: Node,
}

/// A value. What aliases repeat is shared, so that a clone costs nothing.
#[derive(Debug, Clone)]
struct Node {
    position: Position,
    content: Content,
    size: Size,
}

#[derive(Debug, Clone)]
enum Content {
    Scalar,
    Sequence(Rc<Vec<Node>>),
    Mapping(Rc<Vec<Entry>>),
}

#[derive(Debug, Clone)]
struct Entry {
    key: Rc<str>,
    place: Position,
    value: Node,
}

/// How much a value holds, aliases followed.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
}

impl Source {
    /// Reads a document: where everything stands, and what it says, merge keys followed.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub(crate) fn read(text: &str) -> Result<(Self, Value), Vec<(Position, Problem)>> {
        // First of all: this refuses what is too large to be read.
        let source = Self::parse(text)?;
        let mut document = serde_yaml::from_str(text).map_err(|error| vec![syntax(&error)])?;
        merge::merge(&mut document);
        Ok((source, document))
    }

    /// Reads the positions of a document.
    ///
    /// # Errors
    /// What makes the text no single YAML document, with its place; what does not stop the reading, as
    /// duplicate keys, all at once.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<(Position, Problem)>> {
        build::build(text).map(|root| Self { root })
    }

    /// Returns the place of a value, or of its nearest present ancestor's key.
    pub(crate) fn value(&self, path: &Path) -> Position {
        let mut node = &self.root;
        let mut place = node.position;
        for segment in &path.0 {
            match node.child(segment) {
                Some((_, child)) => {
                    node = child;
                    place = child.position;
                }
                None => return self.key(path),
            }
        }
        place
    }

    /// Returns the place of a field's key, or of its nearest present ancestor's key.
    pub(crate) fn key(&self, path: &Path) -> Position {
        let mut node = &self.root;
        let mut place = node.position;
        for segment in &path.0 {
            let Some((key, child)) = node.child(segment) else { break };
            place = key.unwrap_or(child.position);
            node = child;
        }
        place
    }
}

/// Returns what `serde_yaml` found, and where.
pub(crate) fn syntax(error: &serde_yaml::Error) -> (Position, Problem) {
    let place = error.location().map_or(Position::START, |location| Position {
        line: location.line(),
        column: location.column(),
    });
    let detail = words::without_secrets(&error.to_string()).into_owned();
    (place, Problem::Syntax { detail, hint: None })
}

impl Node {
    /// Returns the key's place, where it has one, and the child.
    fn child(&self, segment: &Segment) -> Option<(Option<Position>, &Self)> {
        match (segment, &self.content) {
            (Segment::Key(wanted), Content::Mapping(entries)) => entries
                .iter()
                .find(|entry| *entry.key == **wanted)
                .map(|entry| (Some(entry.place), &entry.value)),
            (Segment::Index(index), Content::Sequence(items)) => {
                items.get(*index).map(|child| (None, child))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str =
        "a: 1\nlist:\n  - name: x\n  - {name: yy, zeta: 3}\nshared: &s {k: 1}\ncopy: *s\n";

    fn place(line: usize, column: usize) -> Position {
        Position { line, column }
    }

    #[test]
    fn keys_and_values_are_found_in_block_and_flow_style() {
        let source = Source::parse(TEXT).unwrap();
        assert_eq!(source.value(&Path::of("a")), place(1, 4));
        let second = Path::of("list").index(1);
        assert_eq!(source.value(&second), place(4, 5));
        assert_eq!(source.key(&second.key("zeta")), place(4, 16));
        assert_eq!(source.value(&second.key("zeta")), place(4, 22));
        assert_eq!(source.value(&Path::of("copy.k")), place(5, 16));
    }

    #[test]
    fn an_absent_field_is_placed_at_the_key_that_should_hold_it() {
        let source = Source::parse(TEXT).unwrap();
        assert_eq!(source.value(&Path::of("list.missing.deeper")), place(2, 1));
        assert_eq!(source.value(&Path::of("nothing")), Position::START);
    }

    #[test]
    fn syntax_errors_second_documents_and_duplicates_have_places() {
        let faults = |text| Source::parse(text).unwrap_err();
        assert_eq!(faults("a: [1, 2\nb: 3\n")[0].0.line, 2);
        assert_eq!(faults("a: 1\n---\nb: 2\n"), [(place(2, 1), Problem::SeveralDocuments)]);
        assert_eq!(faults(""), [(Position::START, Problem::Empty)]);
        let field = "a".to_owned();
        assert_eq!(
            faults("a: 1\nb: 2\na: 3\n"),
            [(place(3, 1), Problem::DuplicateKey { field, first: place(1, 1) })]
        );
        let field = "s[0].k".to_owned();
        assert_eq!(
            faults("s:\n- {k: 1, k: 2}\n"),
            [(place(2, 10), Problem::DuplicateKey { field, first: place(2, 4) })]
        );
    }

    #[test]
    fn merged_keys_stand_where_they_are_written() {
        let text =
            "a: &a {x: 1, y: 2}\nb: &b {<<: *a, z: 3}\nc:\n  <<: [*b, {x: 9, w: 4}]\n  y: 5\n";
        let source = Source::parse(text).unwrap();
        let at = |path| (source.key(&Path::of(path)), source.value(&Path::of(path)));
        assert_eq!(at("c.x"), (place(1, 8), place(1, 11)), "the first mapping that has it");
        assert_eq!(at("c.y"), (place(5, 3), place(5, 6)), "the own key wins");
        assert_eq!(at("c.z"), (place(2, 16), place(2, 19)));
        assert_eq!(at("c.w"), (place(4, 19), place(4, 22)));
        let found = "a single value";
        let field = "b.<<".to_owned();
        let faults = Source::parse("a: &a 1\nb: {<<: *a}\n").unwrap_err();
        assert_eq!(faults, [(place(2, 9), Problem::Merge { field, found })]);
    }

    fn too_large(text: &str) -> String {
        match Source::parse(text).unwrap_err().remove(0).1 {
            Problem::TooLarge { what, .. } => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn aliases_of_aliases_are_bounded() {
        let mut text = String::from("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n");
        for level in 1..9 {
            let previous = level - 1;
            let items = vec![format!("*a{previous}"); 10].join(",");
            text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        let values = "the document has more than 100000 values up to here, aliases followed";
        assert_eq!(too_large(&text), values);
    }

    /// Few values, but each of them long: 50,000 aliases of 100,000 bytes are 5 GB.
    #[test]
    fn aliases_of_long_texts_are_bounded() {
        let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a,".repeat(50_000));
        let bytes = "the document has more than 8388608 bytes up to here, aliases followed";
        assert_eq!(too_large(&text), bytes);
    }

    #[test]
    fn an_alias_inside_of_what_it_repeats_is_refused() {
        let faults = Source::parse("a: &a [1, *a]\n").unwrap_err();
        assert_eq!(faults[0].0, place(1, 11));
        assert!(
            matches!(&faults[0].1, Problem::Syntax { detail, .. } if detail.contains("inside"))
        );
    }

    #[test]
    fn nesting_is_bounded_in_every_style() {
        let levels = "the document nests more than 64 levels here";
        assert_eq!(too_large(&"- ".repeat(100_000)), levels);
        assert_eq!(too_large(&"[".repeat(200)), levels);
        assert_eq!(too_large(&"? ".repeat(100_000)), levels);
        assert_eq!(too_large(&format!("{}1", "&a ".to_owned() + &"{a: ".repeat(200))), levels);
        for open in ["[", "{a: ", "[{a: "] {
            assert!(Source::parse(&open.repeat(100_000)).is_err(), "{open}");
        }
    }

    #[test]
    fn whole_numbers_beyond_64_bits_are_named_where_they_stand() {
        let faults = Source::parse("a: {b: [1, 18446744073709551616]}\n").unwrap_err();
        assert_eq!(faults[0].0, place(1, 12));
        let words = "a.b[1] is 18446744073709551616; expected a number that fits 64 bits";
        assert!(faults[0].1.to_string().starts_with(words));
        assert!(Source::parse("a: 18446744073709551615\nb: '18446744073709551616'\n").is_ok());
    }

    #[test]
    fn a_path_prints_as_people_write_it() {
        assert_eq!(
            Path::of("spec.eval").key("zero_shot").index(0).key("name").to_string(),
            "spec.eval.zero_shot[0].name"
        );
    }
}
