//! What people meant where the text is not YAML.

/// What is said where braces of a text are read as a mapping.
const QUOTES: &str = "a text with { needs quotes here, as in \"/data/{000..127}.tar\"";

/// Returns what a syntax error at this character comes from, where that is known.
///
/// Inside of `{…}` and `[…]` a brace always begins or ends a mapping, so that `{train: /data/{0..3}.tar}`
/// is none; elsewhere only a text that begins with one is.
pub(super) fn hint(text: &str, index: usize) -> Option<&'static str> {
    let mut scan = Scan { before: '\n', ..Scan::default() };
    let mut stuck = false;
    for (at, character) in text.chars().enumerate() {
        if character == '\n' {
            if at >= index {
                break;
            }
            stuck = false;
        }
        stuck |= scan.is_stuck(character);
    }
    stuck.then_some(QUOTES)
}

/// Where a scan of the text stands: enough of YAML to know texts, comments and brackets apart.
#[derive(Default)]
struct Scan {
    before: char,
    /// Brackets and braces that are open.
    depth: usize,
    /// The character before closed a mapping.
    closed: bool,
    quote: Option<char>,
    escaped: bool,
    comment: bool,
}

impl Scan {
    /// Returns true if this is a brace of a text, or what follows one directly.
    fn is_stuck(&mut self, character: char) -> bool {
        let before = std::mem::replace(&mut self.before, character);
        let closed = std::mem::take(&mut self.closed);
        if self.comment {
            self.comment = character != '\n';
            return false;
        }
        if let Some(quote) = self.quote {
            match character {
                _ if self.escaped => self.escaped = false,
                '\\' if quote == '"' => self.escaped = true,
                _ if character == quote => self.quote = None,
                _ => {}
            }
            return false;
        }
        let begins = before.is_whitespace() || (self.depth > 0 && "[{,:".contains(before));
        let behind = closed && !character.is_whitespace() && !",]}:#".contains(character);
        match character {
            '#' => self.comment = before.is_whitespace(),
            // Two apostrophes in a text in apostrophes stand for one.
            '"' | '\'' if begins || before == character => self.quote = Some(character),
            '{' | '[' if begins => self.depth += 1,
            '{' if self.depth > 0 => {
                self.depth += 1;
                return true;
            }
            '[' if self.depth > 0 => self.depth += 1,
            '}' | ']' => {
                self.closed = character == '}' && self.depth > 0;
                self.depth = self.depth.saturating_sub(1);
            }
            _ => {}
        }
        behind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks about the end of the first line that is marked with a bar.
    fn hinted(text: &str) -> bool {
        let index = text.chars().position(|c| c == '|').unwrap_or_else(|| text.chars().count());
        hint(&text.replace('|', ""), index).is_some()
    }

    #[test]
    fn braces_of_a_text_without_quotes_are_noticed() {
        assert!(hinted("data: {train: /nope/{0..3}.tar, seed: 0}|\n"));
        assert!(hinted("data: {\n  train: [s3://b/{0..3}.tar],|\n}\n"));
        assert!(hinted("train: {0..3}.tar|\n"));
        assert!(hinted("a: {b: 'it''s', c: x{0..3}|}\n"));
    }

    #[test]
    fn other_errors_are_not_blamed_on_braces() {
        for text in [
            "data: {train: \"/nope/{0..3}.tar\", seed: 0 lr: 1|}\n",
            "data: {train: '/nope/{0..3}.tar', seed: 0 lr: 1|}\n",
            "train: /nope/{0..3}.tar: 5|\n",
            "a: {b: {c: 1}, d: [{e: 2}]} f|\n",
            "a: {b: x{0..3}}\nc: [1, 2|\n",
            "a: {b: 1} # not x{0..3}\nc: [|\n",
        ] {
            assert!(!hinted(text), "{text}");
        }
    }
}
