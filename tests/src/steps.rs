//! A job's steps as its metrics file shows them while it grows.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use serde_json::Value;

/// One completed step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its number.
    pub step: u64,
    /// The generation that completed it.
    pub generation: String,
    /// When, in Unix seconds.
    pub at: f64,
}

/// Reads what is appended to a `metrics.jsonl`.
#[derive(Debug)]
pub struct Steps {
    path: PathBuf,
    offset: u64,
    /// A line that is not complete yet.
    rest: String,
    /// All so far.
    pub seen: Vec<Step>,
}

impl Steps {
    /// Begins at the file's start; it need not exist yet.
    pub fn of(path: PathBuf) -> Self {
        Self { path, offset: 0, rest: String::new(), seen: Vec::new() }
    }

    /// Reads on, and returns the newest step.
    pub fn read(&mut self) -> Option<&Step> {
        let mut text = String::new();
        if let Ok(mut file) = std::fs::File::open(&self.path)
            && file.seek(SeekFrom::Start(self.offset)).is_ok()
            && let Ok(read) = file.read_to_string(&mut text)
        {
            self.offset += read as u64;
        }
        self.rest.push_str(&text);
        while let Some(end) = self.rest.find('\n') {
            let line: String = self.rest.drain(..=end).collect();
            self.seen.extend(parse(&line));
        }
        self.seen.last()
    }
}

fn parse(line: &str) -> Option<Step> {
    let value: Value = serde_json::from_str(line).ok()?;
    value.get("train/loss")?;
    Some(Step {
        step: value["step"].as_u64()?,
        generation: value["generation"].as_str()?.to_owned(),
        at: value["time"].as_f64()?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_line_counts_once_it_is_whole_and_evaluations_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut steps = Steps::of(path.clone());
        assert_eq!(steps.read(), None, "the file does not exist yet");
        let mut file = std::fs::File::create(&path).unwrap();
        let line = r#"{"step":1,"generation":"g1.1","time":5.5,"train/loss":1.0}"#;
        write!(file, "{line}\n{{\"step\":1,\"val/x\":1}}\n{}", &line[..20]).unwrap();
        assert_eq!(steps.read().unwrap().at, 5.5);
        assert_eq!(steps.seen.len(), 1);
        writeln!(file, "{}", &line[20..]).unwrap();
        steps.read();
        assert_eq!(steps.seen.len(), 2);
    }
}
