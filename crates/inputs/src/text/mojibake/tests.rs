//! Known cases, with results computed by ftfy 6.3.1, and texts made to provoke trouble.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::fix_encoding;

/// Checks that the text comes back unchanged and without a copy.
fn assert_untouched(text: &str) {
    assert!(matches!(fix_encoding(text), Cow::Borrowed(same) if same == text), "{text:?}");
}

#[test]
fn plain_ascii_is_borrowed() {
    assert_untouched("");
    assert_untouched("Nothing to see here, 100% fine?\n");
}

#[test]
fn sound_text_of_many_scripts_is_borrowed() {
    assert_untouched("L’Île-d’Orléans, œuvre «naïve» – 0\u{a0}€ ±3 °C ½");
    assert_untouched("Съешь же ещё этих мягких французских булок");
    assert_untouched("Ξεσκεπάζω την ψυχοφθόρα βδελυγμία");
    assert_untouched("日本語のテキスト 한국어 नमस्ते السلام 😍");
}

#[test]
fn utf8_read_as_latin1_is_repaired() {
    assert_eq!(fix_encoding("schÃ¶n und grÃ¼n"), "schön und grün");
}

#[test]
fn utf8_read_as_windows_1252_is_repaired() {
    let garbled = "itâ€™s â€œfineâ€\u{9d} â€” trÃ¨s bien";
    assert_eq!(fix_encoding(garbled), "it’s “fine” — très bien");
}

#[test]
fn utf8_read_as_windows_1251_is_repaired() {
    assert_eq!(fix_encoding("РџСЂРёРІРµС‚"), "Привет");
}

#[test]
fn utf8_read_as_macroman_or_cp437_is_repaired() {
    assert_eq!(fix_encoding("√© d√©j√†"), "é déjà");
    assert_eq!(fix_encoding("├⌐t├⌐"), "été");
}

#[test]
fn twice_garbled_text_is_repaired_twice() {
    assert_eq!(fix_encoding("ÃƒÂ©tÃƒÂ©"), "été");
}

#[test]
fn emoji_are_repaired() {
    assert_eq!(fix_encoding("ðŸ˜\u{8d} wow"), "😍 wow");
}

#[test]
fn arabic_is_repaired() {
    assert_eq!(fix_encoding("Ø³Ù„Ø§Ù…"), "سلام");
}

#[test]
fn lost_no_break_space_in_a_grave_is_put_back() {
    assert_eq!(fix_encoding("rentrer Ã pied, dÃ©jÃ las"), "rentrer à pied, déjà las");
}

#[test]
fn portuguese_words_with_a_grave_stay_whole() {
    assert_eq!(fix_encoding("fui Ã s compras, jÃ¡ cedo"), "fui às compras, já cedo");
    assert_eq!(fix_encoding("Ã quele dia, jÃ¡"), "àquele dia, já");
}

#[test]
fn characters_that_lost_a_byte_become_replacement_marks() {
    // Here the lone Ã at the end keeps the text as a whole from being read again.
    assert_eq!(fix_encoding("â€œso be itâ€�, said dÃ©jÃ"), "“so be itâ€�, said déjÃ");
    assert_eq!(fix_encoding("â€œso be itâ€�"), "“so be it�");
}

#[test]
fn garbled_part_of_sound_text_is_repaired() {
    let mixed = "sound „Text“ 中文 and dÃ©jÃ vu";
    assert_eq!(fix_encoding(mixed), "sound „Text“ 中文 and déjà vu");
}

#[test]
fn stray_controls_become_windows_1252_characters() {
    assert_eq!(fix_encoding("ok \u{85} 中文"), "ok … 中文");
    assert_eq!(fix_encoding("\u{81} é 中"), "\u{81} é 中");
}

#[test]
fn surrogate_pairs_in_utf8_are_joined() {
    assert_eq!(fix_encoding("í\u{a0}½í¸\u{8d}"), "😍");
}

#[test]
fn line_feed_after_a_broken_lead_byte_is_swallowed_as_in_ftfy() {
    assert_eq!(fix_encoding("Ã©À\n"), "é\0");
}

#[test]
fn long_texts_take_time_in_line_with_their_length() {
    let chain = format!("Ã{}", "ƒ".repeat(100_000));
    let nested = "ÃƒÆ’Ã†â€™ÃƒÂ¢Ã¢â€šÂ¬Ã…Â¡Ãƒâ€šÃ‚Â© 中 ".repeat(5_000);
    let lost = "\u{fffd}".repeat(100_000);
    let odd = "é™\u{fffd}Â€а¬ ".repeat(20_000);
    for text in [chain, nested, lost, odd] {
        let start = Instant::now();
        let repaired = fix_encoding(&text);
        assert!(!repaired.is_empty());
        assert!(start.elapsed() < Duration::from_secs(60), "{:.20}", text);
    }
}
