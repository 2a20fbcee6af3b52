//! How OpenCLIP cleans a caption before it is cut into tokens.
//!
//! It runs ftfy, unescapes HTML twice, collapses whitespace, and then as [`Clean`] says. ftfy's steps are
//! here: HTML, terminal escapes, text that was decoded with the wrong character set (`mojibake`),
//! ligatures, full-width forms, curly quotes, control characters and NFC.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use ringmaster_manifest::model_config::Cleaning;
use tokenizers::NormalizedString;

use super::entities::{unescape, unescape_closed};
use super::{ascii, mojibake};

static TERMINAL_ESCAPE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("\u{1b}\\[[0-9;]*[a-zA-Z]").expect("the pattern is a constant that compiles")
});

/// Rounds after which a caption is left as it is: one for each time that it was escaped or garbled.
const MOST_ROUNDS: usize = 64;

/// What happens to a caption, as OpenCLIP's `clean` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Clean {
    /// Repaired, unescaped, whitespace collapsed.
    Whitespace,
    /// The same in lower case.
    Lower,
    /// The same without ASCII punctuation, underscores as blanks: what SigLIP's captions get.
    Canonicalize,
}

impl From<Cleaning> for Clean {
    fn from(cleaning: Cleaning) -> Self {
        match cleaning {
            Cleaning::Whitespace => Self::Whitespace,
            Cleaning::Lower => Self::Lower,
            Cleaning::Canonicalize => Self::Canonicalize,
        }
    }
}

impl Clean {
    /// Returns `caption` cleaned.
    pub fn apply(self, caption: &str) -> String {
        if let Some(cleaned) = ascii::clean(self, caption) {
            return cleaned;
        }
        match self {
            Self::Lower => lower(caption),
            Self::Whitespace => collapse_whitespace(&basic(caption)),
            Self::Canonicalize => {
                let text = basic(caption).replace('_', " ");
                let text: String =
                    text.chars().filter(|character| !character.is_ascii_punctuation()).collect();
                collapse_whitespace(&text.to_lowercase())
            }
        }
    }
}

/// Repairs text and unescapes HTML twice.
fn basic(caption: &str) -> String {
    let fixed = fix_text(caption);
    unescape(&unescape(&fixed)).into_owned()
}

/// Returns `caption` cleaned: HTML unescaped, whitespace collapsed to single spaces, lower case.
pub fn lower(caption: &str) -> String {
    collapse_whitespace(&basic(caption)).to_lowercase()
}

/// Does what ftfy's `fix_text` does with its default settings, line by line as it does.
fn fix_text(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'%' | b'\''..=b'~')) {
        return Cow::Borrowed(text); // plain ASCII without an ampersand: nothing to fix
    }
    let mut fixed = String::with_capacity(text.len());
    // ftfy takes text with a tag in it for HTML that should stay as it is, and all that follows.
    let mut unescapes = true;
    for line in text.split_inclusive('\n') {
        unescapes &= !line.contains('<');
        fixed.push_str(&fix_line(line, unescapes));
    }
    Cow::Owned(fixed)
}

/// Repeats all steps until none changes anything.
fn fix_line(line: &str, unescapes: bool) -> String {
    let mut fixed = line.to_owned();
    for _ in 0..MOST_ROUNDS {
        let before = fixed.clone();
        if unescapes {
            fixed = unescape_closed(&fixed).into_owned();
        }
        fixed = mojibake::fix_encoding(&fixed).into_owned();
        let mut plain = String::with_capacity(fixed.len());
        fixed.chars().for_each(|character| fix_character(character, &mut plain));
        fixed = TERMINAL_ESCAPE.replace_all(&plain, "").into_owned();
        fixed.retain(|character| !is_unwanted(character));
        if !fixed.is_ascii() {
            let mut normalized = NormalizedString::from(fixed.as_str());
            normalized.nfc();
            fixed = normalized.get().to_owned();
        }
        if fixed == before {
            break;
        }
    }
    fixed
}

/// Controls that say nothing, and marks that only editors need.
fn is_unwanted(character: char) -> bool {
    matches!(character,
        '\u{0}'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}'
        | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

fn fix_character(character: char, fixed: &mut String) {
    match mojibake::control_as_windows_1252(character) {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => fixed.push('\''),
        '\u{201c}'..='\u{201f}' => fixed.push('"'),
        '\u{3000}' => fixed.push(' '),
        wide @ '\u{ff01}'..='\u{ffef}' => {
            let mut narrow = NormalizedString::from(wide.to_string().as_str());
            narrow.nfkc();
            fixed.push_str(narrow.get());
        }
        character => match ligature(character) {
            Some(letters) => fixed.push_str(letters),
            None => fixed.push(character),
        },
    }
}

/// Returns the letters of a Latin digraph or typographic ligature.
fn ligature(character: char) -> Option<&'static str> {
    Some(match character {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "'n",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

fn collapse_whitespace(text: &str) -> String {
    // Python counts the four separator controls as whitespace, Unicode does not.
    let blank = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let mut collapsed = String::with_capacity(text.len());
    for word in text.split(blank).filter(|word| !word.is_empty()) {
        if !collapsed.is_empty() {
            collapsed.push(' ');
        }
        collapsed.push_str(word);
    }
    collapsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entities_are_unescaped_twice_and_blanks_collapse() {
        assert_eq!(lower(" Fish  &amp;amp;\n CHIPS\t"), "fish & chips");
        assert_eq!(lower("<b>&amp;amp;</b>"), "<b>&</b>");
    }

    #[test]
    fn typography_becomes_plain_letters() {
        assert_eq!(lower("“ﬁne” woman’s ＡＢＣ\u{3000}１"), "\"fine\" woman's abc 1");
        assert_eq!(lower("e\u{301}t\u{e9}"), "\u{e9}t\u{e9}");
        assert_eq!(lower("\u{1b}[1;31mred\u{1b}[0m\u{7}"), "red");
    }

    #[test]
    fn text_that_was_read_in_the_wrong_character_set_is_repaired() {
        assert_eq!(lower("A cafÃ© in MÃ¼nchen"), "a caf\u{e9} in m\u{fc}nchen");
        assert_eq!(lower("donâ€™t"), "don't");
        assert_eq!(lower("ðŸ˜€ &amp;lt; Ã©"), "😀 < \u{e9}");
        assert_eq!(lower("caf\u{85} \u{93}a\u{94}"), "caf… \"a\"", "controls are Windows' signs");
    }

    /// The rest of a text behind a tag is HTML, too; what stands before it is not.
    #[test]
    fn a_tag_keeps_references_from_its_line_on() {
        assert_eq!(
            fix_text("a &eacute;\n<b> &eacute;\n&eacute;"),
            "a \u{e9}\n<b> &eacute;\n&eacute;"
        );
    }

    #[test]
    fn cleaning_twice_changes_nothing_more() {
        for text in ["A  cat", "ŉ day", "Ünïcödé ½", "x < y"] {
            assert_eq!(lower(&lower(text)), lower(text));
        }
    }
}
