//! Ring and file of one job.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::{Error, Line};

/// Log of one job. Its methods do blocking IO.
#[derive(Debug)]
pub(super) struct JobLog {
    path: PathBuf,
    file: File,
    /// The newest lines.
    ring: VecDeque<Line>,
    /// Number of the ring's first line.
    first: u64,
    capacity: usize,
}

impl JobLog {
    /// Opens or creates the file and counts its lines; the ring starts empty.
    pub(super) fn open(path: &Path, capacity: usize) -> Result<Self, Error> {
        let error = |action| {
            let path = path.to_owned();
            move |source| Error::File { action, path, source }
        };
        let mut file = File::options()
            .create(true)
            .read(true)
            .append(true)
            .open(path)
            .map_err(error("opening"))?;
        let first = count_lines(&mut file).map_err(error("reading"))?;
        Ok(Self { path: path.to_owned(), file, ring: VecDeque::new(), first, capacity })
    }

    /// Number of the next line.
    #[cfg(test)]
    fn next(&self) -> u64 {
        self.first + self.ring.len() as u64
    }

    /// Writes lines to the file, then to the ring.
    pub(super) fn append(&mut self, lines: Vec<Line>) -> Result<(), Error> {
        let text: String = lines.iter().map(Line::encode).collect();
        self.file.write_all(text.as_bytes()).map_err(|source| self.error("writing", source))?;
        self.ring.extend(lines);
        while self.ring.len() > self.capacity {
            self.ring.pop_front();
            self.first += 1;
        }
        Ok(())
    }

    /// Returns up to `limit` lines from number `from` on, whatever of them the ring has lost.
    pub(super) fn read(&self, from: u64, limit: usize) -> Result<Vec<Line>, Error> {
        if from < self.first {
            let wanted = limit.min(usize::try_from(self.first - from).unwrap_or(usize::MAX));
            return self.read_file(from, wanted);
        }
        let skip = usize::try_from(from - self.first).unwrap_or(usize::MAX);
        Ok(self.ring.iter().skip(skip).take(limit).cloned().collect())
    }

    fn read_file(&self, from: u64, limit: usize) -> Result<Vec<Line>, Error> {
        let file = File::open(&self.path).map_err(|source| self.error("opening", source))?;
        let mut reader = BufReader::new(file);
        let mut lines = Vec::new();
        let mut buffer = Vec::new();
        let mut number = 0;
        while lines.len() < limit {
            buffer.clear();
            let read = reader
                .read_until(b'\n', &mut buffer)
                .map_err(|source| self.error("reading", source))?;
            if read == 0 {
                break;
            }
            if number >= from {
                let text = String::from_utf8_lossy(&buffer);
                lines.push(Line::decode(text.trim_end_matches('\n')));
            }
            number += 1;
        }
        Ok(lines)
    }

    fn error(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::File { action, path: self.path.clone(), source }
    }
}

/// Counts lines and ends a last one that a crash cut off.
fn count_lines(file: &mut File) -> std::io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut lines = 0;
    let mut last = b'\n';
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
        last = buffer[read - 1];
    }
    if last != b'\n' {
        file.write_all(b"\n")?;
        lines += 1;
    }
    Ok(lines)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::Generation;

    use super::*;

    fn line(number: u64) -> Line {
        Line {
            at_ms: number.cast_signed(),
            generation: Generation::new(1, 1),
            rank: 0,
            text: format!("line {number}"),
        }
    }

    #[test]
    fn lines_the_ring_lost_come_from_the_file_without_gap_or_repeat() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = JobLog::open(&folder.path().join("a.log"), 3).unwrap();
        log.append((0..5).map(line).collect()).unwrap();
        log.append((5..10).map(line).collect()).unwrap();
        assert_eq!((log.first, log.next()), (7, 10));
        let mut seen = Vec::new();
        while (seen.len() as u64) < log.next() {
            seen.extend(log.read(seen.len() as u64, 2).unwrap());
        }
        assert_eq!(seen, (0..10).map(line).collect::<Vec<_>>());
    }

    #[test]
    fn a_reopened_log_goes_on_after_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        std::fs::write(&path, format!("{}7\tg1", line(0).encode())).unwrap();
        let mut log = JobLog::open(&path, 10).unwrap();
        assert_eq!(log.next(), 2);
        log.append(vec![line(2)]).unwrap();
        let lines = log.read(0, 2).unwrap();
        assert_eq!((&lines[0], lines[1].text.as_str()), (&line(0), "7\tg1"));
        assert_eq!(log.read(2, 9).unwrap(), [line(2)]);
    }
}
