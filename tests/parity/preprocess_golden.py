"""Writes the golden file of the image tests: encoded images, and what PIL and OpenCLIP make of them.

Needs what `cargo xtask parity` installs:

    python tests/parity/preprocess_golden.py tests/parity/golden/preprocess.safetensors

`NAME.file` is the encoded image, `NAME.rgb` PIL's decoded pixels [H, W, 3]; `NAME.MODE.FILTER.SIZE` the
output of OpenCLIP's evaluation transform [3, S, S] before it is normalised, times 255. All u8.
The pictures are drawn here from a seed: smooth ones like photographs, and drawings with hard edges.
"""

import io
import json
import pathlib
import struct
import sys

import numpy
import torch
from open_clip.transform import image_transform
from PIL import Image, ImageDraw


def smooth(rng: numpy.random.Generator, width: int, height: int) -> Image.Image:
    """Sums of waves of many lengths, with some grain: what a photograph's spectrum looks like."""
    y, x = numpy.mgrid[0:height, 0:width]
    planes = []
    for _ in range(3):
        plane = numpy.full((height, width), 128.0)
        for octave in range(1, 6):
            angle, phase = rng.uniform(0, numpy.pi), rng.uniform(0, 2 * numpy.pi)
            along = x * numpy.cos(angle) + y * numpy.sin(angle)
            plane += 60 / octave * numpy.sin(2 * numpy.pi * along * octave / 60 + phase)
        planes.append(plane + rng.normal(scale=3, size=plane.shape))
    return Image.fromarray(numpy.stack(planes, -1).clip(0, 255).astype(numpy.uint8))


def drawing(rng: numpy.random.Generator, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), (250, 250, 245))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        left, top = rng.integers(0, width), rng.integers(0, height)
        box = [int(left), int(top), int(left + width // 3), int(top + height // 3)]
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    return image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures() -> dict:
    rng = numpy.random.default_rng(0)
    photograph, tall, sketch = smooth(rng, 61, 44), smooth(rng, 29, 71), drawing(rng, 67, 53)
    alpha = sketch.convert("RGBA")
    alpha.putalpha(Image.fromarray(numpy.tile(numpy.arange(67, dtype=numpy.uint8) * 3, (53, 1))))
    palette = sketch.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned; OpenCLIP does not turn it back
    return {
        "jpeg-420": encoded(photograph, "JPEG", quality=90, subsampling="4:2:0"),
        "jpeg-422": encoded(photograph, "JPEG", quality=85, subsampling="4:2:2"),
        "jpeg-444": encoded(tall, "JPEG", quality=95, subsampling="4:4:4"),
        "jpeg-progressive": encoded(photograph, "JPEG", quality=80, progressive=True),
        "jpeg-grey": encoded(photograph.convert("L"), "JPEG", quality=90),
        "jpeg-cmyk": encoded(photograph.convert("CMYK"), "JPEG", quality=95),
        "jpeg-turned": encoded(photograph, "JPEG", quality=90, exif=exif),
        "png": encoded(sketch, "PNG"),
        "png-alpha": encoded(alpha, "PNG"),
        "png-palette": encoded(palette, "PNG"),
        "png-palette-transparent": encoded(palette, "PNG", transparency=3),
        "png-grey": encoded(sketch.convert("L"), "PNG"),
        "png-grey-alpha": encoded(alpha.convert("LA"), "PNG"),
        "png-one-bit": encoded(sketch.convert("1"), "PNG"),
        "webp": encoded(sketch, "WEBP", lossless=True),
        "webp-lossy": encoded(photograph, "WEBP", quality=80),
        "gif": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
    }


def save(path: pathlib.Path, tensors: dict) -> None:
    header, blobs, offset = {}, [], 0
    for name, array in sorted(tensors.items()):
        data = numpy.ascontiguousarray(array).tobytes()
        header[name] = dict(
            dtype="U8", shape=list(array.shape), data_offsets=[offset, offset + len(data)]
        )
        blobs.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def main() -> None:
    tensors = {}
    for name, data in pictures().items():
        tensors[f"{name}.file"] = numpy.frombuffer(data, numpy.uint8)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        tensors[f"{name}.rgb"] = numpy.asarray(image)
        if name not in ("jpeg-420", "jpeg-444", "png"):
            continue
        for mode in ("shortest", "longest", "squash"):
            for filter in ("bicubic", "bilinear"):
                for size in (24, 83):
                    if size == 83 and (mode, filter) != ("shortest", "bicubic"):
                        continue
                    transform = image_transform(
                        size, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=mode,
                        interpolation=filter, fill_color=9,
                    )
                    output = (transform(image) * 255).round().to(torch.uint8)
                    tensors[f"{name}.{mode}.{filter}.{size}"] = output.numpy()
    save(pathlib.Path(sys.argv[1]), tensors)


if __name__ == "__main__":
    main()
