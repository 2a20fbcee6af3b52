//! What a piece of code logs.

use std::io::Write;
use std::sync::{Arc, Mutex};

/// Runs `act` and returns what this thread logged meanwhile, without colours.
pub fn logged(act: impl FnOnce()) -> String {
    let sink = Sink::default();
    let writer = sink.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, act);
    let bytes = sink.0.lock().expect("no thread panicked while it logged").clone();
    String::from_utf8(bytes).expect("log lines are UTF-8")
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no thread panicked while it logged").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
