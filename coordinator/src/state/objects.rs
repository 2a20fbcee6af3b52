//! Checkpoint objects as JSON.

use ringmaster_proto::v1::StoredObject;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Object {
    name: String,
    size: u64,
    // Rows of older builds have this one.
    #[serde(default)]
    sha256: Vec<String>,
    #[serde(default)]
    blake3: Vec<String>,
}

/// Returns the objects as a JSON list.
pub fn encode(objects: &[StoredObject]) -> String {
    let rows: Vec<Object> = objects
        .iter()
        .cloned()
        .map(|StoredObject { name, size, sha256, blake3 }| Object { name, size, sha256, blake3 })
        .collect();
    serde_json::to_string(&rows).expect("plain values serialise")
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(text: &str) -> Result<Vec<StoredObject>, serde_json::Error> {
    let rows: Vec<Object> = serde_json::from_str(text)?;
    Ok(rows
        .into_iter()
        .map(|Object { name, size, sha256, blake3 }| StoredObject { name, size, sha256, blake3 })
        .collect())
}
