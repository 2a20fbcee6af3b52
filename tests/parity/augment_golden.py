"""Writes the golden file of the augmentation tests: what OpenCLIP's transforms make of pictures.

Needs what `cargo xtask parity` installs:

    python tests/parity/augment_golden.py tests/parity/golden/augment.json

Each of the `colors` has the `size` of a picture of `resize_golden.py`'s formula, the `changes` that
`color_jitter` makes, in their order and with their factors, or that of `gray_scale`, and the CRC-32 of the pixels
[H, W, 3] that come out. The draws are forced, everything else is OpenCLIP's. `hues` has for each factor one CRC-32
over all 16,777,216 colours. Each of the `erased` is [side of the input, number of rectangles, draw of the area,
draw of the shape, columns, rows]: what timm's RandomErasing, as OpenCLIP makes it, erases with these draws from
[0, 1) of the first rectangle; 0 columns where it tries again.
"""

import json
import pathlib
import sys
import zlib
from unittest import mock

import numpy
import torch
from open_clip.transform import color_jitter, gray_scale, image_transform
from PIL import Image
from resize_golden import picture
from torchvision.transforms import functional

NAMES = ["brightness", "contrast", "saturation", "hue"]
EDGES = {
    "brightness": [0.0, 0.3, 1.0, 1.7, 300.0],
    "contrast": [0.0, 0.6, 1.0, 1.4, 40.0],
    "saturation": [0.0, 0.6, 1.0, 1.4, 40.0],
    "hue": [-0.5, -0.08, -0.003, 0.0, 0.003, 0.08, 0.5],
}


def jittered(image: Image.Image, changes: list) -> Image.Image:
    """OpenCLIP's colour jitter with these changes drawn."""
    factors = dict(changes)
    given = [name for name, _ in changes]
    order = [NAMES.index(name) for name in given + [name for name in NAMES if name not in given]]
    jitter = color_jitter(0.1, 0.1, 0.1, 0.1, p=1.0)
    jitter.transf.get_params = lambda *_: (torch.tensor(order), *(factors.get(name) for name in NAMES))
    return jitter(image)


def drawn(rng: numpy.random.Generator, order: list) -> list:
    """Factors as torchvision draws them, in single precision."""
    bounds = {"hue": (-0.5, 0.5)}
    pick = lambda name: float(numpy.float32(rng.uniform(*bounds.get(name, (0.0, 2.0)))))
    return [[name, pick(name)] for name in order]


def colors(rng: numpy.random.Generator) -> list:
    lists = [[[name, factor]] for name, factors in EDGES.items() for factor in factors]
    for _ in range(120):
        order = list(rng.permutation(NAMES))
        kept = 4 if rng.random() < 0.7 else int(rng.integers(1, 4))
        lists.append(drawn(rng, order[:kept]))
    found = []
    for changes in [*lists, ["grey"], ["grey"], ["grey"]]:
        width, height = (int(side) for side in rng.integers(1, 90, 2))
        image = picture(width, height)
        image = gray_scale(p=1.0)(image) if changes == ["grey"] else jittered(image, changes)
        found.append(dict(size=[width, height], changes=changes, crc=zlib.crc32(image.tobytes())))
    return found


def hue_of_every_colour(factor: float) -> int:
    green, blue = numpy.mgrid[0:256, 0:256].astype(numpy.uint8)
    crc = 0
    for red in range(256):
        colours = numpy.stack([numpy.full_like(green, red), green, blue], -1)
        crc = zlib.crc32(functional.adjust_hue(Image.fromarray(colours), factor).tobytes(), crc)
    return crc


def erasing(count: int):
    """The last part of OpenCLIP's transform with `use_timm` and `re_prob`."""
    words = dict(use_timm=True, re_prob=1.0, re_count=count)
    transform = image_transform(8, is_train=True, aug_cfg=words).transforms[-1]
    assert transform.per_pixel and (transform.min_count, transform.max_count) == (1, count)
    return transform


def erased(rng: numpy.random.Generator) -> list:
    found = []
    for _ in range(120):
        side, count = int(rng.integers(1, 400)), int(rng.integers(1, 4))
        draws = [float(draw) for draw in rng.random(2)]
        # Where it tries again, and for all rectangles but this one, an area is drawn that never fits.
        values = iter(draws)
        uniform = lambda low, high: low + (high - low) * next(values, 100.0)
        randint = lambda low, high: high if (low, high) == (1, count) else low
        randoms = dict(random=lambda: 0.0, uniform=uniform, randint=randint)
        pixels = torch.full((3, side, side), 7.0)
        with mock.patch.multiple("timm.data.random_erasing.random", **randoms):
            erasing(count)(pixels)
        changed = (pixels != 7).all(0)
        columns, rows = int(changed.any(0).sum()), int(changed.any(1).sum())
        found.append([side, count, *draws, columns, rows])
    return found


def main() -> None:
    rng = numpy.random.default_rng(5)
    hues = {str(factor): hue_of_every_colour(factor) for factor in (0.0, 0.08)}
    lines = lambda cases: "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]"
    text = f'{{"hues": {json.dumps(hues)},\n"colors": {lines(colors(rng))},\n"erased": {lines(erased(rng))}}}\n'
    pathlib.Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
