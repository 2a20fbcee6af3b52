//! TensorBoard event files: TFRecord frames around `Event` messages.
//!
//! A frame is the payload's length (u64), a masked CRC-32C of those eight bytes, the payload, and
//! its masked CRC-32C, all little-endian. Only scalars are written, so the few messages needed
//! are declared here, with the field numbers of TensorFlow's `event.proto` and `summary.proto`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

/// The version readers look for in a file's first event.
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`: readers drop what an earlier session wrote from this step on.
const SESSION_START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Scalars),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Scalars {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Appends scalars to one event file of its own.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
    /// The session's first step is announced with its first scalars.
    announced: bool,
}

impl EventWriter {
    /// Creates a new event file in `folder`, which must exist. Its name sorts after those of
    /// earlier sessions, so readers take them in order.
    ///
    /// # Errors
    /// When the file cannot be created or written.
    pub fn create(folder: &Path) -> io::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!(
            "events.out.tfevents.{:010}.{:09}.{}.ringmaster",
            now.as_secs(),
            now.subsec_nanos(),
            std::process::id()
        );
        let path = folder.join(name);
        let file = OpenOptions::new().create_new(true).append(true).open(&path)?;
        let mut writer = Self { file, path, announced: false };
        writer.write(now.as_secs_f64(), 0, What::FileVersion(FILE_VERSION.to_owned()))?;
        Ok(writer)
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends scalars of one step; `wall_time` is in seconds since 1970.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn scalars<'a>(
        &mut self,
        wall_time: f64,
        step: u64,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> io::Result<()> {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        if !self.announced {
            self.write(wall_time, step, What::SessionLog(SessionLog { status: SESSION_START }))?;
            self.announced = true;
        }
        let value = scalars
            .into_iter()
            .map(|(tag, value)| Scalar { tag: tag.to_owned(), simple_value: value as f32 })
            .collect();
        self.write(wall_time, step, What::Summary(Scalars { value }))
    }

    fn write(&mut self, wall_time: f64, step: i64, what: What) -> io::Result<()> {
        let event = Event { wall_time, step, what: Some(what) };
        // One write per frame: a killed process leaves at most one torn frame, at the end.
        self.file.write_all(&frame(&event.encode_to_vec()))
    }
}

/// Returns a payload as a TFRecord frame.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(payload.len() + 16);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&masked_crc(&length).to_le_bytes());
    frame.extend_from_slice(payload);
    frame.extend_from_slice(&masked_crc(payload).to_le_bytes());
    frame
}

/// Returns TFRecord's masked CRC-32C: rotated and offset, so that a checksum of data that
/// contains checksums stays meaningful.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn events(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let crc = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            assert_eq!(crc, masked_crc(&bytes[..8]));
            let payload = &bytes[12..12 + length];
            let crc = u32::from_le_bytes(bytes[12 + length..16 + length].try_into().unwrap());
            assert_eq!(crc, masked_crc(payload));
            events.push(Event::decode(payload).unwrap());
            bytes = &bytes[16 + length..];
        }
        events
    }

    #[test]
    fn a_file_starts_with_its_version_then_its_session_then_scalars() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        writer.scalars(12.5, 7, [("train/loss", 2.5), ("train/lr", 1e-3)]).unwrap();
        writer.scalars(13.5, 8, [("train/loss", 2.25)]).unwrap();
        let events = events(&std::fs::read(writer.path()).unwrap());
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".to_owned())));
        assert_eq!(events[1].what, Some(What::SessionLog(SessionLog { status: 1 })));
        assert_eq!((events[1].step, events[2].step, events[3].step), (7, 7, 8));
        let Some(What::Summary(scalars)) = &events[2].what else { panic!("{events:?}") };
        assert_eq!(scalars.value[1].tag, "train/lr");
        assert_eq!(scalars.value[1].simple_value, 1e-3_f32);
        assert_eq!(events.len(), 4);
    }

    #[test]
    fn the_checksum_is_masked_as_tensorflow_masks_it() {
        // CRC-32C of "123456789" is 0xe3069283 (RFC 3720, B.4's polynomial).
        let expected = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_crc(b"123456789"), expected);
    }
}
