//! The printable stand-in of every byte that CLIP's vocabulary is written in.

/// Returns, in the vocabulary's order, each byte with the character that stands for it.
///
/// Bytes that print in Latin-1 stand for themselves; the others, in ascending order, are the
/// characters from U+0100 on, so that no entry of the vocabulary holds blanks or control codes.
pub(super) fn in_vocabulary_order() -> Vec<(u8, char)> {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let printed = (0..=u8::MAX).filter(|&byte| prints(byte)).map(|byte| (byte, char::from(byte)));
    let others = (0..=u8::MAX).filter(|&byte| !prints(byte)).zip('\u{100}'..);
    printed.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let table = in_vocabulary_order();
        let characters: std::collections::BTreeSet<char> =
            table.iter().map(|pair| pair.1).collect();
        assert_eq!((table.len(), characters.len()), (256, 256));
        assert_eq!(table[0], (b'!', '!'));
        assert_eq!(table[188], (0, '\u{100}'));
        assert!(table.contains(&(b' ', '\u{120}')));
    }
}
