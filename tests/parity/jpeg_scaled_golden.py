"""Writes the golden file of scaled decoding: what PIL makes of the JPEGs of `jpeg_golden.py` at part of their size.

Needs Pillow, which `cargo xtask parity` installs:

    python tests/parity/jpeg_scaled_golden.py tests/parity/golden/jpeg-scaled.json

For each JPEG a list of [side, columns, rows, CRC-32 of the pixels]: as it is read after `draft` with twice that
side. JPEGs in printing inks are left out.
"""

import io
import json
import pathlib
import sys
import zlib

from PIL import Image
from safetensors.numpy import load_file

FILES = pathlib.Path(__file__).parent / "golden" / "jpeg.safetensors"
SIDES = [1, 2, 4, 7]


def scaled(file: bytes, side: int) -> list:
    image = Image.open(io.BytesIO(file))
    image.draft(None, (2 * side, 2 * side))
    pixels = image.convert("RGB")
    return [side, *pixels.size, zlib.crc32(pixels.tobytes())]


def main() -> None:
    tensors = load_file(FILES)
    names = sorted(name.removesuffix(".crc") for name in tensors if name.endswith(".crc"))
    lines = []
    for name in names:
        found = [scaled(tensors[f"{name}.file"].tobytes(), side) for side in SIDES]
        # One entry for each size.
        kept = {tuple(size): entry for entry in reversed(found) for size in [entry[1:3]]}
        lines.append(f"{json.dumps(name)}: {json.dumps(sorted(kept.values()))}")
    pathlib.Path(sys.argv[1]).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
