//! Captions out of the bytes that hold them.

use ringmaster_weights::found;

/// Returns the caption that a text is.
///
/// # Errors
/// What is wrong with it.
pub(super) fn of_text(text: &[u8]) -> Result<Vec<String>, String> {
    if let Some(what) = found::pointer(text) {
        return Err(format!("caption: it is {what}"));
    }
    let caption = std::str::from_utf8(text).map_err(|e| format!("caption: {e}"))?;
    Ok(vec![caption.trim().to_owned()])
}

/// Returns the caption or captions in a JSON object: those of the first of `fields`, names joined by `;`, that holds
/// one.
///
/// # Errors
/// What is wrong with it.
pub(super) fn of_json(text: &[u8], fields: &str) -> Result<Vec<String>, String> {
    if let Some(what) = found::pointer(text) {
        return Err(format!("caption: it is {what}"));
    }
    let json: serde_json::Value =
        serde_json::from_slice(text).map_err(|e| format!("json member: {e}"))?;
    for field in fields.split(';') {
        let captions: Vec<String> = match &json[field] {
            serde_json::Value::String(caption) => vec![caption.clone()],
            serde_json::Value::Array(list) => {
                list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        };
        if !captions.is_empty() {
            return Ok(captions);
        }
    }
    Err(format!("json member: field {fields:?} holds no caption"))
}
