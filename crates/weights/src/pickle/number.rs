//! Integers, as instructions write them.

use super::value::Value;

/// A little-endian integer of any length; one that no i64 holds is kept as bytes.
pub(super) fn long(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Bytes(bytes.to_vec());
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = if negative { [0xff; 8] } else { [0; 8] };
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}

/// An integer in digits, of one that no i64 holds the digits; or what is wrong with it.
pub(super) fn int(line: &str) -> Result<Value, String> {
    match line {
        "00" => return Ok(Value::Bool(false)),
        "01" => return Ok(Value::Bool(true)),
        _ => {}
    }
    let digits = line.trim_end_matches('L');
    match digits.parse() {
        Ok(value) => Ok(Value::Int(value)),
        Err(_) if is_integer(digits) => Ok(Value::Str(digits.to_owned())),
        Err(_) => Err(format!("{line:?} is no integer")),
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}
