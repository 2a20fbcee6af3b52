//! Processes as /proc shows them.
//!
//! A process is gone once the kernel says that all its threads have ended, not once nothing can be
//! read of it any more: a dying process gives up its memory first, and with it its environment, and
//! only then its sockets, its files and its devices. The other way round, a process whose environment
//! cannot be read may still be ours: in the middle of an exec there is none either.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Flag of a thread that has begun to end (`PF_EXITING` of the kernel).
const EXITING: u32 = 0x4;
/// Flag of the kernel's own threads (`PF_KTHREAD`).
const OF_KERNEL: u32 = 0x0020_0000;
/// Looks at a process that has a program and no environment: the kernel lays out the one before the
/// other, and some have none.
const LOOKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(1);
/// More than an environment usually takes.
const FIRST_BUFFER: usize = 64 << 10;

/// A process. One that is given the same number later is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process {
    /// Its number.
    pub(super) pid: u32,
    /// Clock ticks from boot to its start.
    started: u64,
}

/// What a process was started with, as far as it can be told now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Environment {
    /// Its variables; empty also where it keeps them from this user.
    Known(Vec<u8>),
    /// In the middle of an exec, it has the memory of neither program.
    Changing,
    /// It ends, and has given up its memory.
    Released,
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy)]
struct Stat {
    has_ended: bool,
    is_stopped: bool,
    group: u32,
    session: u32,
    flags: u32,
    started: u64,
}

/// Returns the processes that run, this one among them; none of the kernel's own.
pub(super) fn running() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Process::of)
}

/// If a signal has stopped the process of this number: how often it has left a processor so far, which says
/// whether it ran between two looks. One that a debugger holds is another matter.
pub(super) fn stopped(pid: u32) -> Option<u64> {
    let is_stopped = || Stat::of(pid).is_some_and(|stat| stat.is_stopped);
    if !is_stopped() {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let switches = status.lines().filter(|line| line.contains("voluntary_ctxt_switches:"));
    let counts = switches.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok());
    Some(counts.sum())
}

impl Process {
    /// Returns the process of this number; none where no such process runs.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = Stat::of(pid)?;
        let runs = !stat.has_ended && stat.flags & OF_KERNEL == 0;
        runs.then_some(Self { pid, started: stat.started })
    }

    /// Whether any thread of it is left. A zombie, which only waits for its parent, does not run.
    pub(super) fn runs(self) -> bool {
        self.stat().is_some_and(|stat| !stat.has_ended)
    }

    /// Whether its session or its process group is `leader`'s.
    pub(super) fn is_led_by(self, leader: u32) -> bool {
        self.stat().is_some_and(|stat| stat.group == leader || stat.session == leader)
    }

    /// Returns its environment, or why that cannot be told.
    pub(super) fn environment(self) -> Environment {
        for _ in 0..LOOKS {
            let variables = self.variables();
            if !variables.is_empty() {
                return Environment::Known(variables);
            }
            // One that has ended meanwhile, or belongs to somebody else, is no concern of this one.
            let Some(stat) = self.stat().filter(|_| self.is_this_users()) else { break };
            if stat.flags & EXITING != 0 {
                return Environment::Released;
            }
            if fs::read(self.file("cmdline")).is_ok_and(|words| words.is_empty()) {
                return Environment::Changing;
            }
            std::thread::sleep(PAUSE);
        }
        Environment::Known(Vec::new())
    }

    /// Reads the environment from the first thread that still has it: the main one may have ended.
    fn variables(self) -> Vec<u8> {
        let variables = read_at_once(&self.file("environ"));
        if !variables.is_empty() {
            return variables;
        }
        let threads = fs::read_dir(self.file("task")).into_iter().flatten().flatten();
        let mut all = threads.map(|thread| read_at_once(&thread.path().join("environ")));
        all.find(|variables| !variables.is_empty()).unwrap_or_default()
    }

    fn is_this_users(self) -> bool {
        let user = |path: &Path| fs::metadata(path).map(|about| about.uid()).ok();
        user(&self.file("")) == user(Path::new("/proc/self"))
    }

    /// What the kernel says of it, unless its number is another's by now.
    fn stat(self) -> Option<Stat> {
        Stat::of(self.pid).filter(|stat| stat.started == self.started)
    }

    fn file(self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(name)
    }
}

impl Environment {
    /// Returns a variable as a path.
    pub(super) fn path(&self, name: &str) -> Option<&Path> {
        let Self::Known(variables) = self else { return None };
        let mut variables = variables.split(|&byte| byte == 0);
        let value = variables
            .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        Some(Path::new(OsStr::from_bytes(value)))
    }

    /// Returns a variable as text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.path(name)?.to_str()
    }
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads `pid (name) state ppid group session …`; the name may hold anything, parentheses and
    /// bytes that are no text included.
    fn parse(line: &[u8]) -> Option<Self> {
        let end = line.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(&line[end + 1..]).ok()?;
        // proc(5) counts from 1, and the state is its third field.
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        // Of a zombie's threads the main one alone is left; one whose other threads live runs.
        let threads: u32 = field(20)?.parse().ok()?;
        Some(Self {
            is_stopped: field(3)? == "T",
            has_ended: match field(3)? {
                "Z" => threads <= 1,
                state => state == "X",
            },
            group: field(5)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            flags: field(9)?.parse().ok()?,
            started: field(22)?.parse().ok()?,
        })
    }
}

/// Reads a file of /proc by one call: where an exec comes between two, the rest of it is gone.
fn read_at_once(file: &Path) -> Vec<u8> {
    let mut bytes = vec![0; FIRST_BUFFER];
    loop {
        let read = File::open(file).and_then(|mut file| file.read(&mut bytes)).unwrap_or(0);
        if read < bytes.len() {
            bytes.truncate(read);
            return bytes;
        }
        bytes.resize(2 * bytes.len(), 0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_process_calls_itself() {
        let rest = b" S 1 40 30 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 3 0 777 1 2";
        for name in [&b"sleep"[..], b"a) Z 9 9 9 (b", b"\xff\xfe"] {
            let line = [b"12 (", name, b")", rest].concat();
            let stat = Stat::parse(&line).unwrap();
            assert_eq!((stat.group, stat.session, stat.started), (40, 30, 777));
            assert!(!stat.has_ended && stat.flags == 4_194_560);
        }
        assert!(Stat::parse(b"12 (sleep").is_none() && Stat::parse(b"").is_none());
    }

    #[test]
    fn a_zombie_runs_as_long_as_one_of_its_other_threads_does() {
        let line = |state: &str, threads: u32| {
            format!("12 (x) {state} 1 40 30 0 -1 4 1 0 0 0 1 1 0 0 20 0 {threads} 0 777 1 2")
        };
        let has_ended = |text: String| Stat::parse(text.as_bytes()).unwrap().has_ended;
        assert!(has_ended(line("Z", 1)) && has_ended(line("X", 0)));
        assert!(!has_ended(line("Z", 2)) && !has_ended(line("D", 1)));
    }

    #[test]
    fn only_a_process_that_a_signal_stopped_is_stopped() {
        let rest = b"1 40 30 0 -1 4 1 0 0 0 1 1 0 0 20 0 3 0 777 1 2";
        for (state, is_stopped) in [("T", true), ("t", false), ("S", false), ("R", false)] {
            let line = [b"12 (x T) ", state.as_bytes(), b" ", rest].concat();
            assert_eq!(Stat::parse(&line).unwrap().is_stopped, is_stopped, "{state}");
        }
        assert_eq!(stopped(std::process::id()), None);
    }

    #[test]
    fn a_number_that_another_process_has_by_now_is_not_the_process() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.runs() && running().any(|process| process == own));
        let earlier = Process { started: own.started - 1, ..own };
        assert!(!earlier.runs() && !earlier.is_led_by(own.pid));
    }
}
