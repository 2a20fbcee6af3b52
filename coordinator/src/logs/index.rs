//! The logs of all jobs, and following one.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::job::JobLog;
use super::{Error, Line};

/// Lines of a job kept in memory.
const RING: usize = 20_000;
/// Lines read at once, so that a reader holds a job's lock only briefly.
const PAGE: usize = 1000;
/// An ended job's last lines may arrive after the news of its end, by another stream.
const LINGER: Duration = Duration::from_millis(700);

/// The logs of all jobs; clones share them. Methods block on file IO unless they are async.
#[derive(Debug, Clone)]
pub struct LogIndex {
    folder: PathBuf,
    jobs: Arc<Mutex<BTreeMap<String, Arc<Entry>>>>,
}

#[derive(Debug)]
struct Entry {
    /// Opened at first use.
    log: Mutex<Option<JobLog>>,
    news: watch::Sender<News>,
}

#[derive(Debug, Clone, Copy, Default)]
struct News {
    appended: u64,
    ended: bool,
}

impl LogIndex {
    /// Returns the logs kept in `folder`, which must exist.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, jobs: Arc::default() }
    }

    /// Makes a job known; lines of unknown jobs are refused, because an id becomes a file name.
    /// `ended` tells followers whether to wait for more. May be repeated.
    pub fn announce(&self, job_id: &str, ended: bool) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = jobs.entry(job_id.to_owned()).or_insert_with(|| {
            Arc::new(Entry { log: Mutex::new(None), news: watch::Sender::new(News::default()) })
        });
        entry.news.send_modify(|news| news.ended = ended);
    }

    /// Appends lines to a job's log.
    ///
    /// # Errors
    /// For a job that was never announced, and when the file cannot be written.
    pub fn append(&self, job_id: &str, lines: Vec<Line>) -> Result<(), Error> {
        let entry = self.entry(job_id)?;
        let lines = lines.into_iter().map(Line::tidy).collect();
        self.with_log(job_id, &entry, |log| log.append(lines))?;
        entry.news.send_modify(|news| news.appended += 1);
        Ok(())
    }

    /// Returns a reader of a job's lines, starting with its newest `tail` lines that `rank`
    /// printed; with zero, with its first.
    ///
    /// # Errors
    /// For a job that was never announced, and when the file cannot be read.
    pub fn follow(&self, job_id: &str, rank: Option<u32>, tail: u64) -> Result<Follow, Error> {
        let entry = self.entry(job_id)?;
        let news = entry.news.subscribe();
        let mut follow = Follow {
            logs: self.clone(),
            job_id: job_id.to_owned(),
            entry,
            news,
            rank,
            from: 0,
            ready: VecDeque::new(),
        };
        if tail > 0 {
            follow.skip_to_tail(tail)?;
        }
        Ok(follow)
    }

    fn entry(&self, job_id: &str) -> Result<Arc<Entry>, Error> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.get(job_id)
            .map(Arc::clone)
            .ok_or_else(|| Error::UnknownJob { job_id: job_id.to_owned() })
    }

    fn with_log<T>(
        &self,
        job_id: &str,
        entry: &Entry,
        action: impl FnOnce(&mut JobLog) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut log = entry.log.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut *log;
        action(match slot {
            Some(open) => open,
            None => slot.insert(JobLog::open(&self.folder.join(format!("{job_id}.log")), RING)?),
        })
    }
}

/// A reader of one job's lines.
#[derive(Debug)]
pub struct Follow {
    logs: LogIndex,
    job_id: String,
    entry: Arc<Entry>,
    news: watch::Receiver<News>,
    rank: Option<u32>,
    from: u64,
    ready: VecDeque<Line>,
}

impl Follow {
    /// Returns the next lines that are there already; empty when there are none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn page(&mut self) -> Result<Vec<Line>, Error> {
        if !self.ready.is_empty() {
            return Ok(self.ready.drain(..).collect());
        }
        loop {
            self.news.mark_unchanged();
            let from = self.from;
            let page = self.logs.with_log(&self.job_id, &self.entry, |log| log.read(from, PAGE))?;
            self.from += page.len() as u64;
            let done = page.is_empty();
            let lines: Vec<Line> = page.into_iter().filter(|line| self.wants(line)).collect();
            if done || !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    /// Waits until there may be more lines; false when the job has ended and no more will come.
    pub async fn changed(&mut self) -> bool {
        let ended = self.news.borrow().ended;
        if !ended {
            return self.news.changed().await.is_ok();
        }
        matches!(tokio::time::timeout(LINGER, self.news.changed()).await, Ok(Ok(())))
    }

    fn wants(&self, line: &Line) -> bool {
        self.rank.is_none_or(|rank| line.rank == rank)
    }

    fn skip_to_tail(&mut self, tail: u64) -> Result<(), Error> {
        let tail = usize::try_from(tail).unwrap_or(usize::MAX);
        let mut kept = VecDeque::new();
        loop {
            let page = self.page()?;
            if page.is_empty() {
                self.ready = kept;
                return Ok(());
            }
            kept.extend(page);
            while kept.len() > tail {
                kept.pop_front();
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::Generation;

    use super::*;

    fn line(rank: u32, text: &str) -> Line {
        Line { at_ms: 0, generation: Generation::new(1, 1), rank, text: text.to_owned() }
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn the_tail_counts_only_lines_of_the_rank() {
        let folder = tempfile::tempdir().unwrap();
        let logs = LogIndex::new(folder.path().to_owned());
        logs.announce("a", false);
        let lines = vec![line(0, "a"), line(1, "b"), line(0, "c"), line(0, "d"), line(1, "e")];
        logs.append("a", lines).unwrap();
        let mut follow = logs.follow("a", Some(0), 2).unwrap();
        assert_eq!(texts(&follow.page().unwrap()), ["c", "d"]);
        assert_eq!(texts(&follow.page().unwrap()), [""; 0]);
    }

    #[tokio::test]
    async fn a_follower_sees_what_was_there_and_what_comes_until_the_job_ends() {
        let folder = tempfile::tempdir().unwrap();
        let logs = LogIndex::new(folder.path().to_owned());
        logs.announce("a", false);
        logs.append("a", vec![line(0, "before")]).unwrap();
        let mut follow = logs.follow("a", None, 0).unwrap();
        assert_eq!(texts(&follow.page().unwrap()), ["before"]);
        logs.append("a", vec![line(1, "after")]).unwrap();
        assert!(follow.changed().await);
        assert_eq!(texts(&follow.page().unwrap()), ["after"]);
        logs.announce("a", true);
        assert!(follow.changed().await, "the end itself is news");
        assert!(!follow.changed().await);
    }

    #[test]
    fn lines_outlive_the_process() {
        let folder = tempfile::tempdir().unwrap();
        for round in ["first", "second"] {
            let logs = LogIndex::new(folder.path().to_owned());
            logs.announce("a", false);
            logs.append("a", vec![line(0, round)]).unwrap();
        }
        let logs = LogIndex::new(folder.path().to_owned());
        logs.announce("a", true);
        let mut follow = logs.follow("a", None, 0).unwrap();
        assert_eq!(texts(&follow.page().unwrap()), ["first", "second"]);
    }

    #[test]
    fn a_job_nobody_announced_gets_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let logs = LogIndex::new(folder.path().to_owned());
        let error = logs.append("../../etc/passwd", vec![line(0, "x")]).unwrap_err();
        assert_eq!(error.to_string(), "there is no job ../../etc/passwd");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
