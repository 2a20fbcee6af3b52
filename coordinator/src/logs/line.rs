//! One line, and its form in the file: `<unix ms>\t<generation>\t<rank>\t<text>`.

use ringmaster_proto::v1::Generation;

/// Longest text kept of a line, in bytes; the rest is cut off.
const MAX_TEXT: usize = 16 << 10;

/// A line that a rank printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Unix milliseconds, by the agent's clock.
    pub at_ms: i64,
    /// The generation the rank was in.
    pub generation: Generation,
    /// Who printed it.
    pub rank: u32,
    /// Without the line break.
    pub text: String,
}

impl Line {
    /// Returns the line with its text made fit for one line of the file.
    pub fn tidy(mut self) -> Self {
        if self.text.len() > MAX_TEXT {
            let end = (0..=MAX_TEXT).rev().find(|end| self.text.is_char_boundary(*end));
            self.text.truncate(end.unwrap_or(0));
        }
        if self.text.contains(['\n', '\r']) {
            self.text = self.text.trim_end_matches(['\n', '\r']).replace(['\n', '\r'], " ");
        }
        self
    }

    /// Returns the line as the file holds it, line break included.
    pub(super) fn encode(&self) -> String {
        format!("{}\t{}\t{}\t{}\n", self.at_ms, self.generation, self.rank, self.text)
    }

    /// Reads a line of the file. One that is not of its form (cut off by a crash) is kept as text.
    pub(super) fn decode(line: &str) -> Self {
        let parse = || {
            let mut fields = line.splitn(4, '\t');
            Some(Self {
                at_ms: fields.next()?.parse().ok()?,
                generation: fields.next()?.parse().ok()?,
                rank: fields.next()?.parse().ok()?,
                text: fields.next()?.to_owned(),
            })
        };
        parse().unwrap_or_else(|| Self {
            at_ms: 0,
            generation: Generation::default(),
            rank: 0,
            text: line.to_owned(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_the_file_with_tabs_in_its_text() {
        let line = Line {
            at_ms: 12,
            generation: Generation::new(1, 7),
            rank: 3,
            text: "loss\t0.5".to_owned(),
        };
        assert_eq!(Line::decode(line.encode().trim_end_matches('\n')), line);
    }

    #[test]
    fn a_torn_line_is_kept_as_text() {
        assert_eq!(Line::decode("12\tg1.").text, "12\tg1.");
    }

    #[test]
    fn breaks_and_endless_text_do_not_reach_the_file() {
        let line =
            |text: String| Line { at_ms: 0, generation: Generation::default(), rank: 0, text };
        assert_eq!(line("a\nb\r\n".to_owned()).tidy().text, "a b");
        let long = line("é".repeat(MAX_TEXT)).tidy().text;
        assert!(long.len() <= MAX_TEXT && long.chars().all(|c| c == 'é'));
    }
}
