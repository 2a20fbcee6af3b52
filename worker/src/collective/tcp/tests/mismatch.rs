//! Ranks whose programs differ: one of them says so, naming both sides, and nobody hangs.

use super::*;

/// Below and above the limit between the two kinds of all-reduce, and more than sockets hold.
const ELEMENTS: [i64; 3] = [4, 5000, 4 << 20];

/// Runs on each of two ranks and returns what became of it.
fn outcomes(run: impl Fn(&dyn Collective) -> Result<(), Error> + Sync) -> Vec<Result<(), Error>> {
    let (listeners, mut options) = ring_options(2);
    // What only this ends has hung.
    options.iter_mut().for_each(|options| options.deadline = Some(Duration::from_secs(120)));
    run_ring(listeners, options, run)
}

/// Asserts that both ranks failed, none by its deadline, and that one has named both sides.
#[track_caller]
fn assert_told(outcomes: &[Result<(), Error>], sides: [&str; 2]) {
    let errors: Vec<&Error> = outcomes.iter().map(|o| o.as_ref().unwrap_err()).collect();
    assert!(!errors.iter().any(|e| matches!(e, Error::Deadline { .. })), "{errors:?}");
    let mismatch = errors.iter().find(|e| matches!(e, Error::Mismatch { .. }));
    let text = mismatch.unwrap_or_else(|| panic!("{errors:?}")).to_string();
    assert!(sides.iter().all(|side| text.contains(side)), "{text}");
}

fn zeros(rows: i64, kind: Kind) -> Tensor {
    Tensor::zeros([rows], (kind, Device::Cpu))
}

#[test]
fn dtypes_that_take_as_many_bytes_are_told_apart_in_every_operation() {
    type Start = fn(&dyn Collective, &Tensor) -> Result<Pending, Error>;
    let operations: [Start; 5] = [
        |ring, tensor| ring.all_reduce(tensor, ReduceOp::Sum),
        |ring, tensor| ring.broadcast(tensor, 0),
        |ring, tensor| {
            ring.exchange(tensor, 1 - ring.rank(), &tensor.zeros_like(), 1 - ring.rank())
        },
        |ring, tensor| {
            let half = tensor.size()[0] / 2;
            let counts = [half as usize; 2];
            ring.all_gather(&tensor.narrow(0, 0, half), &tensor.zeros_like(), &counts)
        },
        |ring, tensor| {
            let half = tensor.size()[0] / 2;
            let counts = [half as usize; 2];
            ring.reduce_scatter(tensor, &tensor.narrow(0, 0, half).zeros_like(), &counts)
        },
    ];
    for elements in ELEMENTS {
        for start in operations {
            let outcomes = outcomes(|ring| {
                let tensor = match ring.rank() {
                    0 => zeros(2 * elements, Kind::Float),
                    _ => zeros(elements, Kind::Double),
                };
                start(ring, &tensor)?.wait()
            });
            assert_told(&outcomes, ["of F32", "of F64"]);
        }
    }
}

#[test]
fn a_sum_and_a_maximum_are_told_apart() {
    for elements in ELEMENTS {
        let outcomes = outcomes(|ring| {
            let op = [ReduceOp::Sum, ReduceOp::Max][ring.rank()];
            ring.all_reduce(&zeros(elements, Kind::Float), op)?.wait()
        });
        assert_told(&outcomes, ["by Sum", "by Max"]);
    }
}

#[test]
fn counts_that_differ_are_told_apart_where_the_lengths_do_not() {
    let counts = [[3, 1], [1, 3]];
    for gathers in [true, false] {
        let outcomes = outcomes(|ring| {
            let (share, whole) = (zeros(3, Kind::Float), zeros(4, Kind::Float));
            let counts = counts[ring.rank()];
            if gathers {
                ring.all_gather(&share, &whole, &counts)?.wait()
            } else {
                ring.reduce_scatter(&whole, &share, &counts)?.wait()
            }
        });
        assert_told(&outcomes, ["in shares with fingerprint", "of 16 bytes of F32"]);
    }
}

#[test]
fn roots_that_differ_are_told_apart_although_nobody_would_receive() {
    for elements in ELEMENTS {
        let outcomes =
            outcomes(|ring| ring.broadcast(&zeros(elements, Kind::Float), ring.rank())?.wait());
        assert_told(&outcomes, ["from root 0", "from root 1"]);
    }
}

#[test]
fn a_header_survives_the_wire_and_one_that_makes_no_sense_is_refused() {
    let terms = Terms::of(Dtype::Bf16).combining(ReduceOp::Max).with_root(300);
    let terms = terms.split_into(&[3, 1]);
    let frame = Frame { sequence: 7, operation: Operation::Broadcast, len: 1 << 40, terms };
    let bytes = frame.encode();
    assert_eq!(Frame::decode(&bytes), Some(frame));
    for (at, value) in [(8, 0), (8, 8), (9, 15), (9, 0x31)] {
        let mut broken = bytes;
        broken[at] = value;
        assert_eq!(Frame::decode(&broken), None, "byte {at} is {value}");
    }
    // The published vectors of FNV-1a begin with its offset basis, for no bytes.
    assert_eq!(Terms::of(Dtype::F32).split_into(&[]).shares, 0x811c_9dc5);
    assert_ne!(terms.split_into(&[1, 3]), terms);
}
