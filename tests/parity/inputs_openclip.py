"""How fast captions and pictures become inputs, on one core, beside OpenCLIP in the same run.

    cargo xtask bench tokenizer
    cargo xtask bench preprocess

Both sides get the same captions or the same JPEG and take turns; each figure is the median of its turns.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import image_transform
from PIL import Image
from preprocess_golden import smooth
from tokenizer_live import sentence

TURNS = 5
CAPTIONS = 20_000
PICTURES = 100
LIMITS = dict(tokenizer=30.0, preprocess=3.3)


def ask(bench: str, *arguments: str) -> dict:
    # One core for each side.
    core = sorted(os.sched_getaffinity(0))[0]
    done = subprocess.run(
        [bench, *arguments], check=True, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    return json.loads(done.stdout)


def captions() -> list:
    """Sentences of the made-up vocabulary, none twice: caches of whole captions would help nobody."""
    import random

    rng = random.Random(7)
    found = dict.fromkeys(sentence(rng) for _ in range(CAPTIONS * 3))
    return list(found)[:CAPTIONS]


def tokenizer(bench: str) -> dict:
    texts, theirs = captions(), SimpleTokenizer()
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(text) + "\n" for text in texts)
        file.flush()
        rates, ours = [], []
        for _ in range(TURNS):
            began = time.perf_counter()
            for start in range(0, len(texts), 512):
                theirs(texts[start:start + 512])
            rates.append(len(texts) / (time.perf_counter() - began))
            line = ask(bench, "tokenizer", "--captions", file.name, "--repeats", "3")
            ours.append(line["captions_per_second"])
    return dict(
        bench="tokenizer", captions=len(texts),
        openclip_captions_per_second=round(statistics.median(rates)),
        captions_per_second=round(statistics.median(ours)),
        times_openclip=round(statistics.median(ours) / statistics.median(rates), 2),
    )


def preprocess(bench: str) -> dict:
    picture = smooth(numpy.random.default_rng(5), 500, 375)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    data, transform = buffer.getvalue(), image_transform(224, is_train=False)
    with tempfile.NamedTemporaryFile("wb", suffix=".jpg") as file:
        file.write(data)
        file.flush()
        rates, lines = [], []
        for _ in range(TURNS):
            began = time.perf_counter()
            for _ in range(PICTURES):
                transform(Image.open(io.BytesIO(data)).convert("RGB"))
            rates.append(PICTURES / (time.perf_counter() - began))
            lines.append(ask(bench, "preprocess", "--picture", file.name, "--pictures", str(PICTURES)))
    ours = statistics.median(line["pictures_per_second"] for line in lines)
    return dict(
        bench="preprocess", decoder=lines[0]["decoder"],
        openclip_pictures_per_second=round(statistics.median(rates), 1),
        pictures_per_second=round(ours, 1),
        decode_milliseconds=round(statistics.median(line["decode_milliseconds"] for line in lines), 3),
        milliseconds=round(statistics.median(line["milliseconds"] for line in lines), 3),
        times_openclip=round(ours / statistics.median(rates), 2),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", required=True)
    parser.add_argument("what", choices=["tokenizer", "preprocess"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    core = sorted(os.sched_getaffinity(0))[0]
    os.sched_setaffinity(0, {core})
    result = dict(tokenizer=tokenizer, preprocess=preprocess)[options.what](options.bench)
    result["passed"] = result["times_openclip"] >= LIMITS[options.what]
    print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
