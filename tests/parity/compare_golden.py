"""Compares golden files that were made anew with the committed ones.

    python tests/parity/compare_golden.py tests/parity/golden FOLDER

Tensors may differ by rounding, since another processor adds in another order; everything else has to be
the same bytes. Archives hold dates and are compared by what is in them.
"""

import pathlib
import sys

import numpy
import torch
from safetensors.numpy import load_file

TOLERANCE = 1e-4
# A vocabulary is trained by several threads' worth of floating point; its ids are compared elsewhere.
PASSED_OVER = {"tokenizers"}


def tensors_differ(left: pathlib.Path, right: pathlib.Path) -> list:
    one, two = load_file(left), load_file(right)
    if one.keys() != two.keys():
        return sorted(one.keys() ^ two.keys())
    far = []
    for name in one:
        a, b = one[name].astype(numpy.float64), two[name].astype(numpy.float64)
        if a.shape != b.shape or numpy.linalg.norm(a - b) > TOLERANCE * (numpy.linalg.norm(a) + 1e-6):
            far.append(name)
    return far


def differ(left: pathlib.Path, right: pathlib.Path) -> list:
    if left.suffix == ".safetensors":
        return tensors_differ(left, right)
    if left.suffix == ".npz":
        one, two = numpy.load(left), numpy.load(right)
        same = sorted(one) == sorted(two) and all(numpy.array_equal(one[key], two[key]) for key in one)
        return [] if same else ["arrays"]
    if left.suffix == ".pt" and left.name not in ("weights-malice.pt", "weights-script.pt"):
        load = lambda path: repr(torch.load(path, weights_only=True))
        return [] if load(left) == load(right) else ["values"]
    if left.suffix == ".json":
        return [] if left.read_bytes() == right.read_bytes() else ["text"]
    return []


def main() -> int:
    committed, fresh = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    compared, wrong = 0, 0
    for path in sorted(fresh.rglob("*")):
        relative = path.relative_to(fresh)
        if path.is_dir() or relative.parts[0] in PASSED_OVER:
            continue
        other = committed / relative
        far = differ(other, path) if other.exists() else ["it is not committed"]
        compared += 1
        if far:
            wrong += 1
            print(f"{relative}: {', '.join(far[:5])}")
    print(f"{compared} golden files compared, {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
