"""Writes the golden file of the JPEG tests: JPEGs of many layouts, and what PIL makes of them.

Needs what `cargo xtask parity` installs:

    python tests/parity/jpeg_golden.py tests/parity/golden/jpeg.safetensors

`NAME.file` is the JPEG. Beside it stands `NAME.crc`: height, width and the CRC-32 of PIL's pixels (3 x u32,
little-endian); `NAME.rgb`, the pixels themselves [H, W, 3], of pictures printed in four inks; or
`NAME.refused`, empty, where PIL does not take the file. All u8.
"""

import io
import pathlib
import struct
import sys
import zlib

import numpy
from PIL import Image, UnidentifiedImageError
from preprocess_golden import encoded, save, smooth

SAMPLINGS = {
    "444": ["1x1", "1x1", "1x1"],
    "422": ["2x1", "1x1", "1x1"],
    "440": ["1x2", "1x1", "1x1"],
    "420": ["2x2", "1x1", "1x1"],
    "411": ["4x1", "1x1", "1x1"],
    "441": ["1x4", "1x1", "1x1"],
    "410": ["4x2", "1x1", "1x1"],
    "24": ["2x4", "1x1", "1x1"],
    "311": ["3x1", "1x1", "1x1"],
    "131": ["1x3", "1x1", "1x1"],
    "321": ["3x2", "1x1", "1x1"],
    "422-by-rows": ["2x2", "2x1", "2x1"],
    "422-by-columns": ["2x2", "1x2", "1x2"],
    "444-in-twos": ["2x1", "2x1", "2x1"],
    "unequal": ["2x2", "2x1", "1x2"],
    "grey-in-fours": ["2x2"],
}


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


class Bits:
    """Entropy-coded data: bits, filled up with ones, a zero stuffed after every 255."""

    def __init__(self):
        self.text = []

    def put(self, value: int, count: int) -> None:
        if count:
            self.text.append(format(value, f"0{count}b"))

    def data(self) -> bytes:
        text = "".join(self.text)
        text += "1" * (-len(text) % 8)
        data = bytes(int(text[at:at + 8], 2) for at in range(0, len(text), 8))
        return data.replace(b"\xff", b"\xff\x00")


# Every code of a table has the same length, so that its place in the table is the code.
DC_SYMBOLS = bytes(range(12))  # 4 bits
AC_SYMBOLS = bytes([0x00, 0xF0] + [run << 4 | size for run in range(4) for size in range(1, 5)])  # 5 bits


def tables(quantization: bytes) -> bytes:
    counts = lambda length, symbols: bytes([0] * (length - 1) + [len(symbols)] + [0] * (16 - length))
    dc = segment(0xC4, b"\x00" + counts(4, DC_SYMBOLS) + DC_SYMBOLS)
    ac = segment(0xC4, b"\x10" + counts(5, AC_SYMBOLS) + AC_SYMBOLS)
    return segment(0xDB, quantization) + dc + ac


def block(rng: numpy.random.Generator, bits: Bits, before: int) -> int:
    """Writes one block of coefficients drawn at random; returns the first of them."""
    def amplitude(value: int, size: int) -> None:
        bits.put(value if value > 0 else value + (1 << size) - 1, size)

    first = int(rng.integers(-120, 121))
    size = abs(first - before).bit_length()
    bits.put(DC_SYMBOLS.index(size), 4)
    amplitude(first - before, size)
    at = 1
    for _ in range(rng.integers(0, 12)):
        run, size = int(rng.integers(0, 4)), int(rng.integers(1, 5))
        if at + run > 63:
            break
        at += run + 1
        bits.put(AC_SYMBOLS.index(run << 4 | size), 5)
        value = int(rng.integers(1 << size - 1, 1 << size))
        amplitude(value if rng.random() < 0.5 else -value, size)
    if at <= 63:
        bits.put(AC_SYMBOLS.index(0), 5)
    return first


def drawn(
    rng: numpy.random.Generator, width: int, height: int, samplings: list, ids: bytes = b"\1\2\3\4",
    before: bytes = b"", deep: bool = False, apart: bool = False, restart: int = 0,
) -> bytes:
    """A JPEG of coefficients drawn at random: PIL itself writes few layouts."""
    factors = [tuple(int(part) for part in sampling.split("x")) for sampling in samplings]
    widest, tallest = max(across for across, _ in factors), max(down for _, down in factors)
    values = [5] * 10 + [9] * 54
    quantization = b"\x00" + bytes(values)
    if deep:
        quantization = b"\x10" + struct.pack(">64H", *[5] * 10, *[300] * 54)
    frame = struct.pack(">BHHB", 8, height, width, len(factors))
    frame += b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in zip(ids, factors))
    file = b"\xff\xd8" + before + tables(quantization) + segment(0xC1 if deep else 0xC0, frame)
    if restart:
        file += segment(0xDD, struct.pack(">H", restart))
    parts = [[at] for at in range(len(factors))] if apart else [list(range(len(factors)))]
    for part in parts:
        header = bytes([len(part)]) + b"".join(bytes([ids[at], 0]) for at in part) + b"\0\x3f\0"
        file += segment(0xDA, header)
        if len(part) == 1:
            # A scan of one colour holds no blocks beyond the picture's edge, and takes them one by one.
            (across, down), blocks = factors[part[0]], [(part[0], 1)]
            columns = -(-(-(-width * across // widest)) // 8)
            rows = -(-(-(-height * down // tallest)) // 8)
        else:
            blocks = [(at, factors[at][0] * factors[at][1]) for at in part]
            columns, rows = -(-width // (8 * widest)), -(-height // (8 * tallest))
        bits, last, count = Bits(), [0] * len(factors), 0
        for unit in range(columns * rows):
            if restart and unit and unit % restart == 0:
                file += bits.data() + bytes([0xFF, 0xD0 + count % 8])
                bits, last, count = Bits(), [0] * len(factors), count + 1
            for at, number in blocks:
                for _ in range(number):
                    last[at] = block(rng, bits, last[at])
        file += bits.data()
    return file + b"\xff\xd9"


def layouts(rng: numpy.random.Generator) -> dict:
    files = {}
    for name, samplings in SAMPLINGS.items():
        files[f"layout-{name}"] = drawn(rng, 37, 45, samplings)
        files[f"layout-{name}-narrow"] = drawn(rng, 3, 5, samplings)
    two = SAMPLINGS["420"]
    adobe = lambda transform: segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
    files["scans-apart"] = drawn(rng, 37, 45, two, apart=True)
    files["restarts"] = drawn(rng, 37, 45, two, restart=2)
    files["restarts-apart"] = drawn(rng, 37, 45, two, restart=3, apart=True)
    files["quantization-of-16-bits"] = drawn(rng, 37, 45, two, deep=True)
    files["rgb-by-ids"] = drawn(rng, 21, 13, SAMPLINGS["444"], ids=b"RGB")
    files["rgb-by-adobe"] = drawn(rng, 21, 13, SAMPLINGS["444"], before=adobe(0))
    files["rgb-subsampled"] = drawn(rng, 21, 13, two, ids=b"RGB")
    files["ycbcr-by-adobe"] = drawn(rng, 21, 13, two, ids=b"RGB", before=adobe(1))
    files["ids-from-zero"] = drawn(rng, 21, 13, two, ids=bytes([0, 1, 2]))
    four = ["1x1"] * 4
    files["cmyk"] = drawn(rng, 21, 13, four)
    files["cmyk-by-adobe"] = drawn(rng, 21, 13, four, before=adobe(0))
    files["ycck"] = drawn(rng, 21, 13, four, before=adobe(2))
    files["ycck-subsampled"] = drawn(rng, 21, 13, ["2x2", "1x1", "1x1", "2x2"], before=adobe(2))
    return files


def written_by_pil(rng: numpy.random.Generator) -> dict:
    picture = smooth(rng, 43, 35)
    files = {}
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for quality in (1, 50, 100):
            for progressive in (False, True):
                name = f"pil-{subsampling.replace(':', '')}-{quality}" + "-progressive" * progressive
                options = dict(subsampling=subsampling, quality=quality, progressive=progressive)
                files[name] = encoded(picture, "JPEG", optimize=quality == 50, **options)
    files["pil-restarts"] = encoded(picture, "JPEG", restart_marker_blocks=2)
    files["pil-progressive-restarts"] = encoded(picture, "JPEG", restart_marker_rows=1, progressive=True)
    files["pil-rgb"] = encoded(picture, "JPEG", keep_rgb=True)
    files["pil-grey-progressive"] = encoded(picture.convert("L"), "JPEG", progressive=True)
    files["pil-cmyk-progressive"] = encoded(picture.convert("CMYK"), "JPEG", progressive=True)
    return files


def odd_ones(rng: numpy.random.Generator) -> dict:
    """Files that are not as an encoder leaves them; PIL says which of them are read."""
    picture = smooth(rng, 40, 30)
    files = {}
    for name, file in (
        ("baseline", encoded(picture, "JPEG")),
        ("progressive", encoded(picture, "JPEG", progressive=True)),
    ):
        start, end = file[:2], file[-2:]
        thumbnail = encoded(picture.resize((16, 12)), "JPEG", quality=30)
        exif = segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail)
        comment = segment(0xFE, b"ends here: \xff\xd9, and begins: \xff\xd8")
        frame = file.index(b"\xff\xc0" if name == "baseline" else b"\xff\xc2")
        height = lambda pixels: file[:frame + 5] + struct.pack(">H", pixels) + file[frame + 7:]
        whole = start + exif + comment + file[2:]
        files |= {
            f"odd-{name}-markers-inside-segments": whole,
            f"odd-{name}-cut-after-markers": whole[:len(whole) * 4 // 5],
            f"odd-{name}-cut-in-the-middle": file[:len(file) * 3 // 4],
            f"odd-{name}-zeros-behind": file + bytes(100),
            f"odd-{name}-another-behind": file + thumbnail,
            f"odd-{name}-text-behind": file + b"<html>",
            f"odd-{name}-zeros-before-the-end": file[:-2] + bytes(9) + end,
            f"odd-{name}-filled-before-the-end": file[:-2] + b"\xff\xff\xff" + end,
            f"odd-{name}-filled-before-a-segment": start + b"\xff\xff" + file[2:],
            f"odd-{name}-comment-before-the-end": file[:-2] + comment + end,
            f"odd-{name}-no-end": file[:-2],
            f"odd-{name}-half-an-end": file[:-1],
            f"odd-{name}-no-start": file[2:],
            f"odd-{name}-no-rows": height(0),
            f"odd-{name}-fewer-rows": height(15),
            f"odd-{name}-twelve-bits": file[:frame + 4] + b"\x0c" + file[frame + 5:],
            f"odd-{name}-two-colours": file[:frame + 9] + b"\x02" + file[frame + 10:],
        }
    return files


def of_every_size(rng: numpy.random.Generator) -> dict:
    """Every width and every height up to 40."""
    files = {}
    for width in range(1, 41):
        height = 41 - width
        picture = smooth(rng, width, height)
        small = dict(quality=75, optimize=True)
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            name = f"size-{subsampling.replace(':', '')}-{width}x{height}"
            files[name] = encoded(picture, "JPEG", subsampling=subsampling, **small)
        files[f"size-progressive-{width}x{height}"] = encoded(picture, "JPEG", progressive=True, quality=75)
        files[f"size-grey-{width}x{height}"] = encoded(picture.convert("L"), "JPEG", **small)
        for name in ("440", "411"):
            files[f"size-{name}-{width}x{height}"] = drawn(rng, width, height, SAMPLINGS[name])
    return files


def read(file: bytes):
    """PIL's pixels; none where it refuses."""
    try:
        return numpy.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError):
        return None


def main() -> None:
    rng = numpy.random.default_rng(11)
    tensors = {}
    for name, file in (layouts(rng) | written_by_pil(rng) | odd_ones(rng) | of_every_size(rng)).items():
        tensors[f"{name}.file"] = numpy.frombuffer(file, numpy.uint8)
        pixels = read(file)
        if pixels is None:
            tensors[f"{name}.refused"] = numpy.zeros(0, numpy.uint8)
        elif name.startswith(("cmyk", "ycck")):
            tensors[f"{name}.rgb"] = pixels
        else:
            found = struct.pack("<3I", *pixels.shape[:2], zlib.crc32(pixels.tobytes()))
            tensors[f"{name}.crc"] = numpy.frombuffer(found, numpy.uint8)
    save(pathlib.Path(sys.argv[1]), tensors)


if __name__ == "__main__":
    main()
