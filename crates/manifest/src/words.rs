//! Texts of a manifest as messages repeat them: shortened, and without what a URL holds of secrets.

use std::borrow::Cow;

/// Longest text that a message repeats, in characters.
const LONGEST: usize = 60;

/// How a text is searched for URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slashes {
    /// Two stand behind the scheme.
    Two,
    /// Any number does: one was forgotten, or one too many was written.
    Any,
}

/// What stands for a text that is left out.
const LEFT_OUT: &str = "…";

/// Returns a name or key as a message repeats it.
pub(crate) fn short(text: &str) -> Cow<'_, str> {
    cut(without_secrets(text))
}

/// Returns a text as a message repeats it, in quotes.
pub(crate) fn quoted(text: &str) -> String {
    let safe = without_secrets(text);
    // Quotes make a text longer, never shorter.
    let start: String = safe.chars().take(LONGEST + 1).collect();
    cut(Cow::Owned(format!("{start:?}"))).into_owned()
}

fn cut(text: Cow<'_, str>) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((end, _)) => Cow::Owned(format!("{}{LEFT_OUT}", &text[..end])),
    }
}

/// Returns whether a text holds a URL with a name or password, or with a query, which is where web servers
/// and stores want their keys and signatures.
pub(crate) fn has_secrets(text: &str) -> bool {
    matches!(left_out(text, Slashes::Two), Cow::Owned(_))
}

/// Returns `text` without what may be secret in its URLs: all before an `@` that ends a name or password,
/// and all behind a `?`.
///
/// What looks like a password that breaks the URL off (`s3://key:sec/ret@bucket`) is left out, too: rather
/// too much than a part of it.
pub(crate) fn without_secrets(text: &str) -> Cow<'_, str> {
    left_out(text, Slashes::Any)
}

fn left_out(text: &str, slashes: Slashes) -> Cow<'_, str> {
    let (mut shown, mut rest, mut safe) = (String::new(), text, true);
    let scheme_ends = if slashes == Slashes::Two { "://" } else { ":/" };
    while let Some((before, after)) = rest.split_once(scheme_ends) {
        rest = if slashes == Slashes::Two { after } else { after.trim_start_matches('/') };
        shown.extend([before, scheme_ends, &after[..after.len() - rest.len()]]);
        if let Some(at) = rest.rfind('@').filter(|_| names_somebody(rest)) {
            shown.extend([LEFT_OUT, "@"]);
            rest = &rest[at + 1..];
            safe = false;
        }
        let next = rest.find(scheme_ends).unwrap_or(rest.len());
        if let Some((path, _)) = rest[..next].split_once('?') {
            shown.extend([path, "?", LEFT_OUT]);
            return Cow::Owned(shown);
        }
    }
    if safe { Cow::Borrowed(text) } else { Cow::Owned(shown + rest) }
}

/// Returns whether a URL's server, or what stands in its place, has a name before it.
fn names_somebody(behind_scheme: &str) -> bool {
    let authority = behind_scheme.split(['/', '?', '#']).next().unwrap_or_default();
    // An IPv6 address has colons of its own, in brackets.
    let address = authority.strip_prefix('[').and_then(|inside| inside.split_once(']'));
    let behind = address.map_or(authority, |(_, behind)| behind);
    let port = behind.split_once(':').map_or("", |(_, port)| port);
    authority.contains('@') || !port.chars().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_passwords_and_queries_of_urls_are_left_out() {
        for (text, safe) in [
            ("https://user:pass@host/a.tar", "https://…@host/a.tar"),
            ("https://token@host/a.tar", "https://…@host/a.tar"),
            ("s3://AKIA:wJalr/XUtn@bucket/runs", "s3://…@bucket/runs"),
            ("https://user:pa?ss@host/a", "https://…@host/a"),
            ("https://host/a.tar?X-Amz-Signature=00ff", "https://host/a.tar?…"),
            ("https://a.b/c?sv=1&sig=x%3D", "https://a.b/c?…"),
            ("https://a/x::https://u:p@b/y?z", "https://a/x::https://…@b/y?…"),
            ("https://u:p@a/x::https://v:q@b/y", "https://…@b/y"),
            ("https://a/x?y::https://u:p@b", "https://a/x?…"),
            ("https://a/x::s3://b/y?z", "https://a/x::s3://b/y?…"),
            ("/d/{0..3}.tar::https://u:p@b/y", "/d/{0..3}.tar::https://…@b/y"),
        ] {
            assert_eq!(without_secrets(text), safe);
            assert!(has_secrets(text), "{text}");
        }
        assert_eq!(without_secrets("https:/user:pass@host/a"), "https:/…@host/a");
        assert_eq!(without_secrets("s3:///user:pass@bucket"), "s3:///…@bucket");
    }

    #[test]
    fn what_holds_no_secret_stays_as_it_is() {
        for text in [
            "https://host:8080/a@b.tar",
            "http://[::1]:9000/a@b.tar",
            "s3://bucket/a{0..3}.tar",
            "/data/what?.tar",
            "a://",
            "http://a/x::http://b/y",
            "file:///a/b",
        ] {
            assert_eq!(without_secrets(text), text);
            assert!(!has_secrets(text), "{text}");
        }
        // A file below the root, whose name is left out of messages all the same.
        assert!(!has_secrets("file:///@runs"));
    }

    #[test]
    fn long_texts_are_shortened() {
        assert_eq!(quoted("abc"), "\"abc\"");
        assert_eq!(quoted(&"ü".repeat(59)), format!("\"{}…", "ü".repeat(59)));
        assert_eq!(short(&"k".repeat(1000)), format!("{}…", "k".repeat(60)));
    }
}
