"""Writes the golden file of the resize test: digests of what PIL makes of images of every length.

Needs Pillow and NumPy, which `cargo xtask parity` installs:

    python tests/parity/resize_golden.py tests/parity/golden/resize.json

For each side of an input in `configs/models` and each filter, one SHA-256 over the pixels of all images of
1 to LONGEST columns and one row, and of as many rows and one column, resized along the long axis.
The pixels come from a formula, so the test makes the same ones without a file.
"""

import hashlib
import json
import pathlib
import sys

import numpy
from PIL import Image

LONGEST = 1200
ACROSS = 1
MODELS = pathlib.Path(__file__).parents[2] / "configs" / "models"


def picture(width: int, height: int) -> Image.Image:
    """Grain with hard edges: what a rounding fault anywhere would change."""
    y, x, channel = numpy.mgrid[0:height, 0:width, 0:3].astype(numpy.uint64)
    mixed = (x * 0x9E3779B1 + y * 0x85EBCA77 + channel * 0xC2B2AE3D) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return Image.fromarray((mixed >> 24).astype(numpy.uint8))


def sides() -> list:
    configurations = [json.loads(path.read_text()) for path in MODELS.glob("*.json")]
    found = {entry.get("vision_cfg", {}).get("image_size") for entry in configurations}
    return sorted(side for side in found if side)


def main() -> None:
    digests = {}
    for side in sides():
        for name, filter in (("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)):
            digest = hashlib.sha256()
            for length in range(1, LONGEST + 1):
                for size, target in (
                    ((length, ACROSS), (side, ACROSS)),
                    ((ACROSS, length), (ACROSS, side)),
                ):
                    digest.update(picture(*size).resize(target, filter).tobytes())
            digests[f"{name}.{side}"] = digest.hexdigest()
    pathlib.Path(sys.argv[1]).write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    main()
