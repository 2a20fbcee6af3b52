//! HTML's character references, as Python's `html.unescape` and ftfy read them.
//!
//! Not htmlize (1.1.0), which reads as browsers do: it keeps the control characters that numbers such as `&#1;`
//! stand for, and Python leaves them out: captions would become other tokens than OpenCLIP's. ftfy's rules would stay
//! here anyway.

use std::borrow::Cow;

use html_escape::decode_html_entities;

/// Names that HTML also takes without a semicolon (WHATWG's table of named character references).
const LEGACY: &str = "AElig AMP Aacute Acirc Agrave Aring Atilde Auml COPY Ccedil ETH Eacute Ecirc \
    Egrave Euml GT Iacute Icirc Igrave Iuml LT Ntilde Oacute Ocirc Ograve Oslash Otilde Ouml QUOT \
    REG THORN Uacute Ucirc Ugrave Uuml Yacute aacute acirc acute aelig agrave amp aring atilde auml \
    brvbar ccedil cedil cent copy curren deg divide eacute ecirc egrave eth euml frac12 frac14 \
    frac34 gt iacute icirc iexcl igrave iquest iuml laquo lt macr micro middot nbsp not ntilde \
    oacute ocirc ograve ordf ordm oslash otilde ouml para plusmn pound quot raquo reg sect shy sup1 \
    sup2 sup3 szlig thorn times uacute ucirc ugrave uml uuml yacute yen yuml";

/// What the numbers 0x80 to 0x9F stand for: those of Windows-1252, as browsers have it.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
    '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Longest name that is looked at.
const LONGEST: usize = 32;

/// Returns `text` with every reference decoded, as `html.unescape`: numbers with or without a
/// semicolon, names with one, and old names also as the beginning of a longer word.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    replace(text, |body| {
        if let Some(number) = body.strip_prefix('#') {
            return number_of(number);
        }
        let named = name_of(body);
        named.or_else(|| {
            // From the longest beginning on; two letters make the shortest name.
            (2..body.len()).rev().filter(|end| body.is_char_boundary(*end)).find_map(|end| {
                let name = &body[..end];
                let known = LEGACY.split_ascii_whitespace().any(|legacy| legacy == name);
                let decoded = known.then(|| decode(name)).flatten()?;
                Some((decoded, end))
            })
        })
    })
}

/// Returns `text` with the references decoded that end in a semicolon, as ftfy: also names in
/// capitals that HTML does not have, such as `&EACUTE;`.
pub(super) fn unescape_closed(text: &str) -> Cow<'_, str> {
    replace(text, |body| {
        let end = body.strip_suffix(';')?;
        if !end.trim_start_matches('#').bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        if let Some(number) = body.strip_prefix('#') {
            return number_of(number).filter(|(_, taken)| *taken == body.len());
        }
        name_of(body).or_else(|| {
            let capitals = end.bytes().all(|byte| !byte.is_ascii_lowercase());
            let decoded = capitals.then(|| decode(&end.to_ascii_lowercase())).flatten()?;
            Some((decoded.to_uppercase(), body.len()))
        })
    })
}

/// Replaces what follows each `&` where `decoded` knows it: it is given the word there, with its
/// semicolon, and returns the text it stands for and how many bytes of the word that was.
fn replace(text: &str, decoded: impl Fn(&str) -> Option<(String, usize)>) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let word = word(&rest[at + 1..]);
        match Some(word).filter(|word| word.len() > 1).and_then(&decoded) {
            Some((replaced, taken)) => {
                out.push_str(&replaced);
                rest = &rest[at + 1 + taken..];
            }
            None => {
                out.push('&');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Returns what may be a reference at the beginning of `rest`: characters that are no blank, `<`,
/// `&` or `#`, at most so many, with a semicolon behind them.
fn word(rest: &str) -> &str {
    let number = usize::from(rest.starts_with('#'));
    let mut end = number;
    for (count, (at, character)) in rest[number..].char_indices().enumerate() {
        let stops = matches!(character, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#');
        if stops || count > LONGEST || (count == LONGEST && character != ';') {
            break;
        }
        end = number + at + character.len_utf8();
        if character == ';' {
            break;
        }
    }
    &rest[..end]
}

/// Decodes `body` where it is a whole name with its semicolon, or an old name without.
fn name_of(body: &str) -> Option<(String, usize)> {
    match body.strip_suffix(';') {
        Some(name) => decode(name).map(|decoded| (decoded, body.len())),
        None => {
            let known = LEGACY.split_ascii_whitespace().any(|legacy| legacy == body);
            known.then(|| decode(body)).flatten().map(|decoded| (decoded, body.len()))
        }
    }
}

/// Returns what a name stands for.
fn decode(name: &str) -> Option<String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let reference = format!("&{name};");
    match decode_html_entities(&reference) {
        Cow::Owned(decoded) if decoded != reference => Some(decoded),
        _ => None,
    }
}

/// Decodes a number that follows `#`; returns the text and the bytes taken, `#` included.
fn number_of(body: &str) -> Option<(String, usize)> {
    let hexadecimal = body.starts_with(['x', 'X']);
    let (radix, skipped) = if hexadecimal { (16, 1) } else { (10, 0) };
    let digits = body[skipped..].bytes().take_while(|byte| (*byte as char).is_digit(radix)).count();
    if digits == 0 {
        return None;
    }
    let end = skipped + digits;
    let number = u32::from_str_radix(&body[skipped..end], radix).unwrap_or(u32::MAX);
    let taken = 1 + end + usize::from(body[end..].starts_with(';'));
    let text = match number {
        0 | 0xD800..=0xDFFF | 0x11_0000.. => "\u{fffd}".to_owned(),
        0x0D => "\r".to_owned(),
        0x80..=0x9F => WINDOWS_1252[number as usize - 0x80].to_string(),
        _ if is_invalid(number) => String::new(),
        _ => char::from_u32(number).map(String::from).unwrap_or_default(),
    };
    Some((text, taken))
}

/// Control characters and code points that are no characters.
fn is_invalid(number: u32) -> bool {
    matches!(number, 0x1..=0x8 | 0xB | 0xE..=0x1F | 0x7F | 0xFDD0..=0xFDEF)
        || number & 0xFFFE == 0xFFFE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_pythons_html_unescape_reads_them() {
        for (text, expected) in [
            ("&amp; &lt;b&gt; &eacute;", "& <b> é"),
            ("&amp &ltb &notit; &notanentity;", "& <b ¬it; ¬anentity;"),
            ("&#65;&#x42&#67 &#x1F600;", "ABC 😀"),
            ("&#128; &#0; &#xD800; &#1;|&#x110000;", "€ \u{fffd} \u{fffd} |\u{fffd}"),
            ("AT&T R&D; & &; &# &#x;", "AT&T R&D; & &; &# &#x;"),
            ("&Jscr;&copycat", "𝒥©cat"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn ftfy_reads_only_what_ends_and_capitals_too() {
        for (text, expected) in [
            ("&amp; &amp &notit;", "& &amp &notit;"),
            ("P&EACUTE;REZ &SZLIG; &nTILDE;", "PÉREZ SS &nTILDE;"),
            ("&#65; &#65", "A &#65"),
        ] {
            assert_eq!(unescape_closed(text), expected, "{text}");
        }
    }
}
