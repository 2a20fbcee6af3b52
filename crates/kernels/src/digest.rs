//! Copying and hashing a piece of memory.

use std::ops::Range;

use crc_fast::CrcAlgorithm;

/// Copies `kept` of `bytes` to `to`, of the same length, and returns the CRC-64/NVME of all of `bytes`.
///
/// One after the other, so a piece that fits into the processor's cache is read from memory once.
///
/// # Panics
/// When the lengths differ, or `kept` leaves `bytes`.
#[inline(never)]
pub fn copy_and_hash(bytes: &[u8], kept: Range<usize>, to: &mut [u8]) -> u64 {
    to.copy_from_slice(&bytes[kept]);
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_copied_and_everything_is_hashed() {
        let bytes = b"123456789";
        let mut to = [0; 3];
        // The check value of CRC-64/NVME.
        assert_eq!(copy_and_hash(bytes, 2..5, &mut to), 0xae8b_1486_0a79_9888);
        assert_eq!(&to, b"345");
        assert_eq!(copy_and_hash(bytes, 9..9, &mut []), 0xae8b_1486_0a79_9888);
    }
}
