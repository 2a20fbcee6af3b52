//! Tests of the page: what it says, and that nothing leaves it.

use super::*;

#[test]
fn dates_and_durations_are_those_of_the_calendar() {
    assert_eq!(utc(1_795_464_252.0), "2026-11-23 20:04");
    assert_eq!(utc(951_782_400.0), "2000-02-29 00:00");
    assert_eq!([duration(7.4), duration(331.5), duration(11_000.0)], ["7s", "5m 32s", "3h 03m"]);
}

#[test]
fn numbers_keep_four_significant_digits() {
    assert_eq!(
        [significant(2.345_67), significant(931.26), significant(0.0123), significant(1e-5)],
        ["2.346", "931.3", "0.01230", "1.00e-5"]
    );
}

#[test]
fn captions_are_escaped() {
    let mut page = String::new();
    let prediction = Prediction {
        index: 0,
        caption: "<b>\"cat\"</b> & dog".to_owned(),
        place: 7,
        top: Vec::new(),
        picture: None,
    };
    card(&mut page, &prediction);
    assert!(page.contains("&lt;b&gt;&quot;cat&quot;&lt;/b&gt; &amp; dog"), "{page}");
}
