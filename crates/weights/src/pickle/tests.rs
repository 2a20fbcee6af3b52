//! Archives with what training scripts leave beside the weights; `fixtures/values.py` writes them.

use std::path::Path;

use super::*;
use crate::{Error, Weights};

fn open(name: &str) -> Weights {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    Weights::open(&path).unwrap_or_else(|error| panic!("{error}"))
}

fn run_alone(pickle: &[u8]) -> Result<Pickle, Reason> {
    let mut view = |_: &Storage, _, _, _| Err("a tensor where none belongs".to_owned());
    run(pickle, &mut view).map(|(pickle, _)| pickle).map_err(|failure| failure.reason)
}

/// open_clip#1078: `best_metric`, a number of numpy's, made a good checkpoint "not intact".
#[test]
fn numbers_of_numpys_beside_the_weights_are_read() {
    for name in ["values-2.pt", "values-5.pt"] {
        let weights = open(name);
        let number = |key: &str| weights.root().unwrap().get(key).unwrap().as_f64();
        for (key, expected) in [
            ("epoch", 3.0),
            ("best_metric", 0.8125),
            ("half", 0.5),
            ("single", 0.25),
            ("small", -3.0),
            ("unsigned", 4e9),
            ("swapped", 2.5),
        ] {
            assert_eq!(number(key), Some(expected), "{name}: {key}");
        }
        let done = weights.root().unwrap().get("done").unwrap();
        assert!(matches!(done.value(), Value::Bool(true)), "{name}");
        for (key, expected) in
            [("word", "a number of numpy's type U4"), ("day", "a number of numpy's type M8")]
        {
            let value = weights.root().unwrap().get(key).unwrap();
            assert!(
                matches!(value.value(), Value::Object { class, .. } if class == expected),
                "{key}"
            );
        }
    }
}

#[test]
fn weights_are_read_whatever_else_a_training_script_saved() {
    for name in ["values-2.pt", "values-5.pt"] {
        let weights = open(name);
        let values = |key: &str| weights.get(key).unwrap().to_f32();
        assert_eq!(values("weight"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "{name}");
        assert_eq!(weights.get("weight").unwrap().shape(), [2, 3]);
        assert_eq!(values("bias"), [7.0, 8.0]);
        assert_eq!(values("marked"), [9.0], "a tensor of a class of somebody's own");
        let root = weights.root().unwrap();
        assert_eq!(root.get("config").unwrap().get("depth").unwrap().as_i64(), Some(2));
        assert_eq!(root.get("counts").unwrap().get("cat").unwrap().as_i64(), Some(2));
        assert_eq!(root.get("recent").unwrap().elements().count(), 2);
        let arguments = root.get("args").unwrap();
        assert_eq!(arguments.get("lr").unwrap().as_f64(), Some(5e-4));
        assert_eq!(root.get("odds").unwrap().elements().count(), 8);
    }
}

#[test]
fn a_tensor_that_cannot_be_read_is_named_with_its_type_and_the_others_are_read() {
    let weights = open("values-2.pt");
    for (name, expected) in [
        ("quantized", "torch._utils._rebuild_qtensor"),
        ("complex", "a tensor on a torch.ComplexFloatStorage"),
        ("tiny", "a tensor of torch.float8_e4m3fn"),
        ("array", "a numpy array"),
    ] {
        assert_eq!(weights.unreadable()[name], expected);
        let text = weights.get(name).unwrap_err().to_string();
        assert!(text.starts_with(&format!("{name} of ")), "{text}");
        assert!(
            text.contains(&format!("is stored as {expected}, which is not read here")),
            "{text}"
        );
    }
    assert_eq!((weights.tensors().len(), weights.unreadable().len()), (3, 4));
}

/// `torch.save(model)` in place of `torch.save(model.state_dict())`.
#[test]
fn a_module_that_was_pickled_whole_gives_what_its_state_dict_would() {
    let weights = open("module.pt");
    let names: Vec<&str> = weights.tensors().keys().map(String::as_str).collect();
    assert_eq!(names, ["layer.weight", "mean", "scale"], "and no buffer that is not saved");
    assert_eq!(weights.get("layer.weight").unwrap().to_f32(), [1.0, 2.0]);
    assert!(!weights.is_torch_script());
}

#[test]
fn what_runs_programs_or_code_is_refused_where_it_is_named() {
    for global in [
        "cos\nsystem\n",
        "cnt\nsystem\n",
        "csubprocess\nPopen\n",
        "c__builtin__\neval\n",
        "cbuiltins\n__import__\n",
        "crunpy\n_run_code\n",
        "ctorch.hub\nload\n",
        "cimportlib\nimport_module\n",
    ] {
        let pickle = [global.as_bytes(), b"(S'x'\ntR."].concat();
        let refused = run_alone(&pickle).unwrap_err();
        assert!(matches!(refused, Reason::Refused(_)), "{global}");
    }
    for global in ["cosutils\nA\n", "cbuiltins\nrange\n", "ctorch.hubs\nA\n", "capp.os\nA\n"] {
        let pickle = [global.as_bytes(), b"(S'x'\ntR."].concat();
        assert!(run_alone(&pickle).is_ok(), "{global}");
    }
}

#[test]
fn a_checkpoint_without_tensors_says_what_it_holds() {
    let error = |pickle: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut archive = zip::ZipWriter::new(file.reopen().unwrap());
        archive.start_file("a/data.pkl", zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut archive, pickle).unwrap();
        archive.finish().unwrap();
        let error = Weights::open(file.path()).unwrap_err();
        assert!(matches!(error, Error::NoTensors { .. }), "{error}");
        error.to_string()
    };
    let text = error(b"\x80\x02}(U\x05epochK\x01U\x03net}u.");
    assert!(
        text.contains("holds no tensors by name: it is a dictionary of epoch, net; load"),
        "{text}"
    );
    let text = error(b"\x80\x02cmine\nTrainer\n)\x81.");
    assert!(text.contains("it is an object of mine.Trainer"), "{text}");
    let text = error(b"\x80\x02](K\x01K\x02e.");
    assert!(text.contains("it is a list of 2, the first of them a number"), "{text}");
}

/// Each call made its name longer, and the names together filled the memory.
#[test]
fn names_that_grow_with_every_call_end_soon() {
    // torch._utils._rebuild_tensor_v2(the last one,), again and again.
    let call = b"ctorch._utils\n_rebuild_tensor_v2\nq\0cmine\nA\n)R".to_vec();
    let again = b"q\x010h\0h\x01\x85R".repeat(200_000);
    let pickle = [call, again, b".".to_vec()].concat();
    let broken = run_alone(&pickle).unwrap_err();
    assert!(matches!(broken, Reason::Broken(text) if text.contains("copies far more")));
}
