//! The verdicts of all kinds as a table for people.

use super::report::{Limit, Promise, Verdict};

/// What became of a kind.
#[derive(Debug)]
pub enum Row {
    /// It was measured.
    Measured(Verdict),
    /// Its drill broke off: its word, and why.
    BrokeOff(&'static str, String),
}

const HEADER: [&str; 9] =
    ["fault", "n", "p50", "max", "s", "p50 − s", "max − s", "limit", "result"];

/// Returns a line per kind, in seconds, and below it why a promise was not kept.
pub fn table(rows: &[Row]) -> String {
    let mut cells = vec![HEADER.map(str::to_owned)];
    cells.extend(rows.iter().map(Row::cells));
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEADER.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &[String; 9]| {
        let padded = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&cells[0])];
    for (row, own) in rows.iter().zip(&cells[1..]) {
        lines.push(line(own));
        lines.extend(row.reasons().iter().map(|reason| format!("    {reason}")));
    }
    lines.join("\n")
}

impl Row {
    fn cells(&self) -> [String; 9] {
        let verdict = match self {
            Self::Measured(verdict) => verdict,
            Self::BrokeOff(word, _) => {
                let mut cells = [(); 9].map(|()| "–".to_owned());
                (cells[0], cells[8]) = ((*word).to_owned(), "BROKE OFF".to_owned());
                return cells;
            }
        };
        let seconds = |value: f64| format!("{value:.3}");
        let start = verdict.start.map(|[median, _]| median);
        let beyond = |value: f64| start.map_or("–".to_owned(), |start| seconds(value - start));
        [
            verdict.kind.word().to_owned(),
            verdict.runs.to_string(),
            seconds(verdict.median),
            seconds(verdict.longest),
            start.map_or("–".to_owned(), seconds),
            beyond(verdict.median),
            beyond(verdict.longest),
            promise_text(verdict.promise),
            if verdict.kept() { "pass" } else { "FAIL" }.to_owned(),
        ]
    }

    fn reasons(&self) -> &[String] {
        match self {
            Self::Measured(verdict) => &verdict.broken,
            Self::BrokeOff(_, why) => std::slice::from_ref(why),
        }
    }
}

fn promise_text(promise: Promise) -> String {
    let text = |limit: Limit| match limit {
        Limit::Seconds(seconds) => format!("{seconds:.1}"),
        Limit::AfterStart(more) => format!("s + {more:.1}"),
    };
    if promise.median == promise.longest {
        format!("max ≤ {}", text(promise.longest))
    } else {
        format!("p50 ≤ {}, max ≤ {}", text(promise.median), text(promise.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind::Kind;
    use super::super::report::Report;
    use super::super::timeline::Timeline;
    use super::*;

    #[test]
    fn a_row_has_the_figures_beside_the_start_and_a_broken_promise_its_reason_below() {
        let verdict = |kind, total: f64, starts: &[f64]| {
            let recoveries = vec![Timeline { total, parts: [0.0; 5] }];
            let (calm, starts) = ([0.0; 2], starts.to_vec());
            Report { kind, recoveries, starts, calm, counted: 1, complaints: Vec::new() }.verdict()
        };
        let text = table(&[
            Row::Measured(verdict(Kind::KillRank, 0.3, &[0.25])),
            Row::Measured(verdict(Kind::UndeadRank, 16.0, &[])),
            Row::BrokeOff("cut-node", "no network namespaces".to_owned()),
        ]);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
        let cells = |line: usize| lines[line].iter().copied().filter(|cell| !cell.is_empty());
        let wanted = ["kill-rank", "1", "0.300", "0.300", "0.250", "0.050", "0.050"];
        assert_eq!(cells(1).take(7).collect::<Vec<_>>(), wanted, "{text}");
        assert!(text.contains("p50 ≤ s + 0.1, max ≤ s + 0.4  pass"), "{text}");
        assert!(text.contains("max ≤ 15.0") && text.contains("FAIL"), "{text}");
        assert!(text.contains("\n    the longest of 16.000 s is above 15.000 s\n"), "{text}");
        assert!(text.ends_with("BROKE OFF\n    no network namespaces"), "{text}");
    }
}
