//! Processes that end with this one, however it ends, and leave no folder behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use tempfile::TempDir;

/// Waits for the end of the pipe it reads, then ends the processes it was told, as far as they
/// still are what they were, and removes the folder. Signals of the terminal are for others.
const WATCHER: &str = r#"
trap '' INT HUP TERM QUIT
folder=$1
pids=""
while read -r line; do pids="$pids $line"; done
for pid in $pids; do
    if tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -q -x -F -- "TMPDIR=$folder"; then
        kill -9 "$pid" 2>/dev/null
    fi
done
rm -rf -- "$folder"
"#;

/// A folder, the processes that work in it, and the watcher that ends them.
#[derive(Debug)]
pub(super) struct Daemons {
    folder: PathBuf,
    children: Vec<Child>,
    watcher: Child,
    /// Closed when this process ends, which is what the watcher waits for.
    lifeline: Option<ChildStdin>,
}

impl Daemons {
    pub(super) fn new() -> Self {
        // The watcher removes it: a static is never dropped.
        let folder = TempDir::with_prefix("ringmaster-s3-").expect("a temporary folder").keep();
        let mut watcher = Command::new("sh")
            .args(["-c", WATCHER, "watcher"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let lifeline = watcher.stdin.take();
        Self { folder, children: Vec::new(), watcher, lifeline }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a program; the folder is where it may leave things, and what it says goes there too.
    pub(super) fn start(&mut self, name: &str, command: &mut Command) {
        use std::io::Write;
        let log = File::create(self.log(name)).expect("a temporary folder is writable");
        let copy = log.try_clone().expect("a file handle can be copied");
        command.env("TMPDIR", &self.folder).stdin(Stdio::null()).stdout(log).stderr(copy);
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        if let Some(lifeline) = &mut self.lifeline {
            writeln!(lifeline, "{}", child.id()).expect("the watcher listens");
        }
        self.children.push(child);
    }

    /// Returns the exit status of a process that has ended, if any has.
    pub(super) fn ended(&mut self) -> Option<String> {
        let ended = |child: &mut Child| child.try_wait().ok().flatten();
        self.children.iter_mut().find_map(ended).map(|status| status.to_string())
    }

    /// Returns what every program said last.
    pub(super) fn last_words(&self) -> String {
        let mut words = String::new();
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = std::fs::read(&path).unwrap_or_default();
                let text =
                    String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned();
                words.push_str(&format!("--- {}\n{text}\n", path.display()));
            }
        }
        words
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.lifeline = None;
        let _ = self.watcher.wait();
    }
}
