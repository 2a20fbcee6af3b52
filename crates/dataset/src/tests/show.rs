//! Which samples are shown, and how.

use proptest::prelude::*;

use super::*;
use crate::show::{Options, choose, samples, sheet, to_html};

proptest! {
    #[test]
    fn chosen_samples_are_different_sorted_and_of_the_set(
        total in 0_u64..500,
        samples in 1_u64..200,
        seed in any::<Option<u64>>(),
    ) {
        let options = Options { samples, seed };
        let chosen = choose(total, options).unwrap();
        prop_assert_eq!(chosen.len() as u64, samples.min(total));
        prop_assert!(chosen.windows(2).all(|two| two[0] < two[1]));
        prop_assert!(chosen.last().is_none_or(|&last| last < total));
        prop_assert_eq!(chosen, choose(total, options).unwrap());
    }
}

#[test]
fn another_seed_chooses_others_and_none_the_first() {
    let with = |seed| choose(10_000, Options { samples: 60, seed }).unwrap();
    assert_ne!(with(Some(0)), with(Some(1)));
    assert_eq!(with(None), (0..60).collect::<Vec<_>>());
    for samples in [0, crate::show::MOST + 1] {
        let error = choose(100, Options { samples, seed: None }).unwrap_err().to_string();
        assert!(error.contains("choose 1 to 10,000"), "{error}");
    }
}

#[test]
fn a_sample_that_cannot_be_used_is_shown_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = sample("a", "png", png(&picture(1, 300, 20)), "wide <b>");
    members.extend(sample("b", "png", b"no image".to_vec(), "bad"));
    members.push(("c.txt".into(), b"alone".to_vec()));
    let input = open([shard(&folder.path().join("0.tar"), &members)]);
    let shown = samples(&input, vec![0, 1, 2], 64, &Meter::default()).unwrap();
    let small = shown[0].picture.as_ref().unwrap();
    assert_eq!((small.dimensions(), shown[0].size), ((64, 4), Some((300, 20))));
    assert!(shown[1].picture.as_ref().unwrap_err().contains("something unknown"));
    assert!(shown[2].picture.as_ref().unwrap_err().contains("no image"));
    let html = to_html("samples", &shown);
    assert!(html.contains("wide &lt;b&gt;") && html.contains("something unknown"));
    assert_eq!(html.matches("<img").count(), 1);
    let drawn = sheet::draw(&shown);
    for as_jpeg in [false, true] {
        let file = sheet::encode(&drawn, as_jpeg).unwrap();
        let decoded = ringmaster_inputs::image::decode(&file).unwrap();
        assert_eq!(decoded.dimensions(), drawn.dimensions());
    }
}

#[test]
fn the_name_of_a_file_says_its_form() {
    use crate::show::file::Form;
    let form = |name: &str| Form::of(Path::new(name));
    assert_eq!(form("a/b.PNG").unwrap(), Form::Png);
    assert_eq!((form("b.jpeg").unwrap(), form("b.html").unwrap()), (Form::Jpeg, Form::Html));
    for name in ["b", "b.gif", ""] {
        let error = form(name).unwrap_err().to_string();
        assert!(error.contains(".png, .jpg or .html"), "{error}");
    }
    assert!(Form::Html.bytes("t", &[]).unwrap().starts_with(b"<!doctype html>"));
}
