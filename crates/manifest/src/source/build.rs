//! From the parser's events to the tree of positions, within bounds.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::{Content, Entry, Node, Path, Position, Segment, Size, hint};
use crate::error::Problem;
use crate::limits::{MAX_DEPTH, MAX_EXPANDED_TEXT, MAX_NODES};
use crate::{merge, words};

/// Digits from which on a whole number may not fit 64 bits; with a prefix as `0x`, a sign too.
const LONG_NUMBER: usize = 18;

type Faulty<T> = Result<T, (Position, Problem)>;

/// Returns the root of a document's tree.
pub(super) fn build(text: &str) -> Result<Node, Vec<(Position, Problem)>> {
    let mut builder = Builder {
        text,
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        here: Vec::new(),
        depth: 0,
        read: Size::default(),
        faults: Vec::new(),
    };
    match builder.document() {
        Ok(root) if builder.faults.is_empty() => Ok(root),
        Ok(_) => Err(builder.faults),
        Err(fault) => Err(vec![fault]),
    }
}

struct Builder<'input> {
    text: &'input str,
    parser: Parser<'input, StrInput<'input>>,
    anchors: HashMap<usize, Node>,
    /// Where the node that is being read stands.
    here: Vec<Segment>,
    depth: usize,
    /// Of all that was read so far, aliases followed.
    read: Size,
    /// Faults that do not stop the reading.
    faults: Vec<(Position, Problem)>,
}

impl<'input> Builder<'input> {
    fn document(&mut self) -> Faulty<Node> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(_) if root.is_some() => {
                    return Err((span.start.into(), Problem::SeveralDocuments));
                }
                Event::StreamStart
                | Event::DocumentStart(_)
                | Event::DocumentEnd
                | Event::Nothing => {}
                event => root = Some(self.node(event, span)?.0),
            }
        }
        root.ok_or((Position::START, Problem::Empty))
    }

    /// Returns the next event; the parser always ends with `StreamEnd` or an error.
    fn next(&mut self) -> Faulty<(Event<'input>, Span)> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let place = Position::from(*error.marker());
                let detail = error.info().to_owned();
                let hint = hint::hint(self.text, error.marker().index());
                Err((place, Problem::Syntax { detail, hint }))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    /// Builds the node that `event` starts; a scalar's text comes along, for keys.
    fn node(&mut self, event: Event<'input>, span: Span) -> Faulty<(Node, String)> {
        let position = Position::from(span.start);
        let before = self.read;
        self.count(Size { nodes: 1, bytes: 0 }, position)?;
        self.descend(position)?;
        let mut text = String::new();
        let (content, anchor) = match event {
            Event::Scalar(value, style, anchor, tag) => {
                text = value.into_owned();
                self.count(Size { nodes: 0, bytes: text.len() }, position)?;
                if style == ScalarStyle::Plain && tag.is_none() {
                    self.check_number(&text, position);
                }
                (Content::Scalar, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.sequence()?, anchor),
            Event::MappingStart(anchor, _) => (self.mapping()?, anchor),
            Event::Alias(anchor) => (self.alias(anchor, position)?, 0),
            _ => (Content::Scalar, 0),
        };
        self.depth -= 1;
        let size = self.read.since(before);
        let node = Node { position, content, size };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok((node, text))
    }

    fn descend(&mut self, position: Position) -> Faulty<()> {
        self.depth += 1;
        if self.depth <= MAX_DEPTH {
            return Ok(());
        }
        let what = format!("the document nests more than {MAX_DEPTH} levels here");
        let remedy = "a manifest needs no more than eight; is a bracket or brace not closed?";
        Err((position, Problem::TooLarge { what, remedy }))
    }

    fn alias(&mut self, anchor: usize, position: Position) -> Faulty<Content> {
        let Some(target) = self.anchors.get(&anchor).cloned() else {
            let detail = "an alias stands inside of what it repeats".to_owned();
            return Err((position, Problem::Syntax { detail, hint: None }));
        };
        self.count(target.size, position)?;
        Ok(target.content)
    }

    fn sequence(&mut self) -> Faulty<Content> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd | Event::StreamEnd) {
                return Ok(Content::Sequence(Rc::new(items)));
            }
            self.here.push(Segment::Index(items.len()));
            items.push(self.node(event, span)?.0);
            self.here.pop();
        }
    }

    fn mapping(&mut self) -> Faulty<Content> {
        let mut entries = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd | Event::StreamEnd) {
                break;
            }
            let (key, name) = self.node(event, span)?;
            let (event, span) = self.next()?;
            self.here.push(Segment::Key(name));
            let value = self.node(event, span)?.0;
            let Some(Segment::Key(name)) = self.here.pop() else { continue };
            entries.push(Entry { key: name.into(), place: key.position, value });
        }
        self.find_duplicates(&entries);
        Ok(Content::Mapping(Rc::new(self.merged(entries))))
    }

    fn find_duplicates(&mut self, entries: &[Entry]) {
        let mut seen: HashMap<&str, Position> = HashMap::new();
        for Entry { key, place, .. } in entries {
            match seen.get(&**key) {
                Some(first) => {
                    let field = self.field(key);
                    self.faults.push((*place, Problem::DuplicateKey { field, first: *first }));
                }
                None => {
                    seen.insert(key, *place);
                }
            }
        }
    }

    /// Adds what a merge key takes over, at the places where it is written; see [`merge`].
    fn merged(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        let (merges, mut kept): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|entry| &*entry.key == merge::KEY);
        let Some(value) = merges.into_iter().next().map(|entry| entry.value) else { return kept };
        let mut seen: HashSet<Rc<str>> = kept.iter().map(|entry| Rc::clone(&entry.key)).collect();
        let sources = match &value.content {
            Content::Sequence(items) => items.iter().collect(),
            _ => vec![&value],
        };
        for source in sources {
            let found = match &source.content {
                Content::Mapping(entries) => {
                    let new = entries.iter().filter(|entry| seen.insert(Rc::clone(&entry.key)));
                    kept.extend(new.cloned());
                    continue;
                }
                Content::Sequence(_) => "a list",
                Content::Scalar => "a single value",
            };
            let field = self.field(merge::KEY);
            self.faults.push((source.position, Problem::Merge { field, found }));
        }
        kept
    }

    /// Returns the name of a key of the mapping that is being read.
    fn field(&self, key: &str) -> String {
        Path(self.here.clone()).key(key).to_string()
    }

    /// Values are read into 64 bits.
    fn check_number(&mut self, text: &str, place: Position) {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        let long = digits.len() > LONG_NUMBER && digits.starts_with(|c: char| c.is_ascii_digit());
        if long && serde_yaml::from_str::<serde_yaml::Value>(text).is_err() {
            let field = Path(self.here.clone()).to_string();
            let expected = "a number that fits 64 bits, or text in quotes";
            self.faults.push((place, Problem::value(field, words::short(text), expected)));
        }
    }

    fn count(&mut self, more: Size, place: Position) -> Faulty<()> {
        self.read.nodes += more.nodes;
        self.read.bytes += more.bytes;
        let what = if self.read.nodes > MAX_NODES {
            format!("the document has more than {MAX_NODES} values up to here, aliases followed")
        } else if self.read.bytes > MAX_EXPANDED_TEXT {
            format!(
                "the document has more than {MAX_EXPANDED_TEXT} bytes up to here, aliases followed"
            )
        } else {
            return Ok(());
        };
        let remedy = "repeat less with aliases, and name shards with braces as {00000..01242}";
        Err((place, Problem::TooLarge { what, remedy }))
    }
}

impl Size {
    fn since(self, before: Self) -> Self {
        Self { nodes: self.nodes - before.nodes, bytes: self.bytes - before.bytes }
    }
}
