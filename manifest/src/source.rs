//! The manifest's text and where in it everything stands.
//!
//! `serde_yaml` gives values without positions; a second pass over `saphyr-parser`'s events
//! rebuilds the tree with a line and a column for every key and value.

use std::collections::HashMap;
use std::fmt;

use saphyr_parser::{Event, Marker, Parser, Span};

/// Nodes a manifest may expand to; stops aliases of aliases of aliases.
const MAX_NODES: usize = 100_000;

/// Levels a manifest may nest; stops `[[[[…` from exhausting the stack.
const MAX_DEPTH: usize = 64;

/// A place in the text, both counted from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}

impl Position {
    /// The first character of the file.
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

impl From<Marker> for Position {
    fn from(marker: Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }
}

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
                Segment::Key(key) if position == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// What stops the text from being read as one YAML document at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    Syntax(String),
    Empty,
    SeveralDocuments,
    TooLarge,
    DuplicateKey { path: Path, first: Position },
}

/// The tree of positions.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    root: Node,
}

#[derive(Debug, Clone)]
struct Node {
    position: Position,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Scalar,
    Sequence(Vec<Node>),
    Mapping(Vec<(String, Position, Node)>),
}

impl Source {
    /// Reads the positions of a document.
    ///
    /// # Errors
    /// What makes the text no single YAML document, with its place; duplicate keys all at once.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<(Position, Fault)>> {
        let mut builder = Builder {
            parser: Parser::new_from_str(text),
            anchors: HashMap::new(),
            nodes: 0,
            depth: 0,
        };
        let root = builder.document().map_err(|fault| vec![fault])?;
        let mut duplicates = Vec::new();
        find_duplicates(&root, &Path::default(), &mut duplicates);
        if duplicates.is_empty() { Ok(Self { root }) } else { Err(duplicates) }
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

impl Node {
    /// Returns the key's place, where it has one, and the child.
    fn child(&self, segment: &Segment) -> Option<(Option<Position>, &Self)> {
        match (segment, &self.content) {
            (Segment::Key(wanted), Content::Mapping(entries)) => entries
                .iter()
                .find(|(key, ..)| key == wanted)
                .map(|(_, place, child)| (Some(*place), child)),
            (Segment::Index(index), Content::Sequence(items)) => {
                items.get(*index).map(|child| (None, child))
            }
            _ => None,
        }
    }
}

fn find_duplicates(node: &Node, path: &Path, found: &mut Vec<(Position, Fault)>) {
    match &node.content {
        Content::Scalar => {}
        Content::Sequence(items) => {
            for (index, item) in items.iter().enumerate() {
                find_duplicates(item, &path.index(index), found);
            }
        }
        Content::Mapping(entries) => {
            let mut seen: HashMap<&str, Position> = HashMap::new();
            for (key, place, child) in entries {
                let path = path.key(key);
                find_duplicates(child, &path, found);
                match seen.get(key.as_str()) {
                    Some(first) => {
                        found.push((*place, Fault::DuplicateKey { path, first: *first }));
                    }
                    None => {
                        seen.insert(key, *place);
                    }
                }
            }
        }
    }
}

/// Builds [`Node`]s from parser events.
struct Builder<'input> {
    parser: Parser<'input, saphyr_parser::StrInput<'input>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    depth: usize,
}

type Faulty<T> = Result<T, (Position, Fault)>;

impl<'input> Builder<'input> {
    fn document(&mut self) -> Faulty<Node> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(_) if root.is_some() => {
                    return Err((span.start.into(), Fault::SeveralDocuments));
                }
                Event::StreamStart
                | Event::DocumentStart(_)
                | Event::DocumentEnd
                | Event::Nothing => {}
                event => root = Some(self.node(event, span)?.0),
            }
        }
        root.ok_or((Position::START, Fault::Empty))
    }

    /// Returns the next event; the parser always ends with `StreamEnd` or an error.
    fn next(&mut self) -> Faulty<(Event<'input>, Span)> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let place = Position::from(*error.marker());
                Err((place, Fault::Syntax(error.info().to_owned())))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    /// Builds the node that `event` starts; a scalar's text comes along, for keys.
    fn node(&mut self, event: Event<'input>, span: Span) -> Faulty<(Node, String)> {
        let position = Position::from(span.start);
        self.count(1, position)?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err((position, Fault::TooLarge));
        }
        let mut text = String::new();
        let (content, anchor) = match event {
            Event::Scalar(value, _, anchor, _) => {
                text = value.into_owned();
                (Content::Scalar, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.sequence()?, anchor),
            Event::MappingStart(anchor, _) => (self.mapping()?, anchor),
            Event::Alias(anchor) => {
                let target = self.anchors.get(&anchor).cloned();
                self.count(target.as_ref().map_or(0, size), position)?;
                (target.map_or(Content::Scalar, |node| node.content), 0)
            }
            _ => (Content::Scalar, 0),
        };
        self.depth -= 1;
        let node = Node { position, content };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok((node, text))
    }

    fn sequence(&mut self) -> Faulty<Content> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd | Event::StreamEnd) {
                return Ok(Content::Sequence(items));
            }
            items.push(self.node(event, span)?.0);
        }
    }

    fn mapping(&mut self) -> Faulty<Content> {
        let mut entries = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd | Event::StreamEnd) {
                return Ok(Content::Mapping(entries));
            }
            let (key, name) = self.node(event, span)?;
            let (event, span) = self.next()?;
            entries.push((name, key.position, self.node(event, span)?.0));
        }
    }

    fn count(&mut self, nodes: usize, place: Position) -> Faulty<()> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES { Err((place, Fault::TooLarge)) } else { Ok(()) }
    }
}

fn size(node: &Node) -> usize {
    match &node.content {
        Content::Scalar => 1,
        Content::Sequence(items) => 1 + items.iter().map(size).sum::<usize>(),
        Content::Mapping(entries) => {
            1 + entries.iter().map(|(.., child)| size(child)).sum::<usize>()
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
        assert_eq!(faults("a: 1\n---\nb: 2\n"), [(place(2, 1), Fault::SeveralDocuments)]);
        assert_eq!(faults(""), [(Position::START, Fault::Empty)]);
        let path = Path::of("a");
        assert_eq!(
            faults("a: 1\nb: 2\na: 3\n"),
            [(place(3, 1), Fault::DuplicateKey { path, first: place(1, 1) })]
        );
    }

    #[test]
    fn aliases_of_aliases_are_bounded() {
        let mut text = String::from("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n");
        for level in 1..9 {
            let previous = level - 1;
            let items = vec![format!("*a{previous}"); 10].join(",");
            text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        let faults = Source::parse(&text).unwrap_err();
        assert_eq!(faults[0].1, Fault::TooLarge);
        let faults = Source::parse(&"[".repeat(50_000)).unwrap_err();
        let Fault::Syntax(detail) = &faults[0].1 else { panic!("{faults:?}") };
        assert_eq!(detail, "recursion limit exceeded");
    }

    #[test]
    fn a_path_prints_as_people_write_it() {
        assert_eq!(
            Path::of("spec.eval").key("zero_shot").index(0).key("name").to_string(),
            "spec.eval.zero_shot[0].name"
        );
    }
}
