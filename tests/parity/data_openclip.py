"""How fast webdataset shards of JPEGs become batches, per core, beside OpenCLIP's loader in the same run.

    cargo xtask bench data

All sides read the same shards, make the same random resized crop of 224 pixels, tokenize, and share one core with
everything they start; they take turns, and each figure is the median of its turns. litdata and spdl are printed without
a bar: litdata reads a copy in its own format, spdl decodes and scales without a random crop or tokens.

Last comes a store of ten thousand shards that the bench makes up: seconds to the first batch, requests for each block
of shards, and how fast shards without counts are counted beside a bare GET of the same bytes.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TURNS = 3
SAMPLES = 2048
BATCH = 128
# OpenCLIP's rate, a plain loop's, the step without data, and memory over ten epochs.
OPENCLIP, PLAIN, STEP, MEMORY = 3.5, 0.9, 1.03, 0.02
# Seconds to the first batch from ten thousand shards, requests per block, and counting beside a bare GET.
FIRST, REQUESTS, COUNTING = 10, 1.1, 0.9


def first_core() -> int:
    return sorted(os.sched_getaffinity(0))[0]


def pin() -> None:
    os.sched_setaffinity(0, {first_core()})


def ask(bench: str, *arguments: str, pinned: bool = True) -> dict:
    done = subprocess.run(
        [bench, "data", *arguments], check=True, stdout=subprocess.PIPE, text=True,
        preexec_fn=pin if pinned else None,
    )
    return json.loads(done.stdout)


def child(name: str, *arguments: str) -> dict:
    """Measures a peer in a process of its own on one core; what it starts inherits that."""
    done = subprocess.run(
        [sys.executable, __file__, "--peer", name, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=pin,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        # spdl decodes with the system's FFmpeg (apt-get install ffmpeg).
        return dict(error=last if len(last) < 100 else last[:97] + "...")
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- The peers ----

def rate_of(batches, count) -> dict:
    """Pictures per second after the first batches, which were made ahead."""
    batches, seen = iter(batches), 0
    for _ in range(2):
        next(batches)
    began = time.perf_counter()
    for batch in batches:
        seen += count(batch)
        if seen >= SAMPLES - 4 * BATCH:
            break
    return dict(pictures_per_second=seen / (time.perf_counter() - began))


def openclip(shards: str) -> dict:
    import open_clip
    import torch
    from open_clip.transform import AugmentationCfg, image_transform
    from open_clip_train.data import get_wds_dataset

    torch.set_num_threads(1)
    args = argparse.Namespace(
        train_data=shards, train_num_samples=SAMPLES, batch_size=BATCH, workers=1,
        world_size=1, seed=0, dataset_resampled=False, train_data_upsampling_factors=None,
    )
    transform = image_transform(224, is_train=True, aug_cfg=AugmentationCfg())
    data = get_wds_dataset(args, transform, is_train=True, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    return rate_of(data.dataloader, lambda batch: len(batch[0]))


def litdata(shards: str) -> dict:
    import io
    import tarfile

    import open_clip
    import torch
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter
    from open_clip.transform import AugmentationCfg, image_transform
    from PIL import Image

    torch.set_num_threads(1)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="litdata-"))
    try:
        writer = BinaryWriter(str(folder), chunk_bytes="64MB")
        index = 0
        for path in sorted(pathlib.Path(shards).parent.glob("*.tar")):
            with tarfile.open(path) as tar:
                members = {member.name: tar.extractfile(member).read() for member in tar}
            for name, data in members.items():
                if name.endswith(".jpg"):
                    writer.add_item(index, dict(image=data, text=members[name[:-3] + "txt"].decode()))
                    index += 1
        writer.done()
        writer.merge()
        transform = image_transform(224, is_train=True, aug_cfg=AugmentationCfg())
        tokenizer = open_clip.get_tokenizer("ViT-B-32")

        class Pairs(StreamingDataset):
            def __getitem__(self, place):
                item = super().__getitem__(place)
                image = Image.open(io.BytesIO(item["image"])).convert("RGB")
                return transform(image), tokenizer(item["text"])[0]

        loader = StreamingDataLoader(Pairs(str(folder), shuffle=True), batch_size=BATCH, num_workers=1)
        return rate_of(loader, lambda batch: len(batch[0]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def spdl(shards: str) -> dict:
    import spdl.io

    def batches():
        for path in sorted(pathlib.Path(shards).parent.glob("*.tar")):
            images = []
            with open(path, "rb") as file:
                for name, data in spdl.io.iter_tarfile(file):
                    if name.endswith(".jpg"):
                        config = spdl.io.get_video_filter_desc(scale_width=224, scale_height=224, pix_fmt="rgb24")
                        images.append(spdl.io.to_numpy(spdl.io.load_image(bytes(data), filter_desc=config)))
                        if len(images) == BATCH:
                            yield images
                            images = []

    return rate_of(batches(), len)


PEERS = dict(openclip=openclip, litdata=litdata, spdl=spdl)


# ---- The comparison ----

def turns(measure) -> list:
    return [measure() for _ in range(TURNS)]


def median(lines: list, key: str) -> float:
    return statistics.median(line[key] for line in lines)


def rates(bench: str, shards: str) -> dict:
    ours, plain, theirs = [], [], []
    for _ in range(TURNS):
        theirs.append(child("openclip", shards))
        ours.append(ask(bench, "loader", shards, "--pictures", str(SAMPLES)))
        plain.append(ask(bench, "plain", shards, "--pictures", str(SAMPLES)))
    failed = [line["error"] for line in theirs if "error" in line]
    if failed:
        raise SystemExit(f"OpenCLIP's loader failed: {failed[0]}")
    rate = median(ours, "pictures_per_second")
    found = dict(
        pictures_per_second=round(rate, 1),
        plain_loop=round(median(plain, "pictures_per_second"), 1),
        openclip=round(median(theirs, "pictures_per_second"), 1),
    )
    found["times_openclip"] = round(rate / median(theirs, "pictures_per_second"), 2)
    found["times_plain_loop"] = round(rate / median(plain, "pictures_per_second"), 3)
    for name in ["litdata", "spdl"]:
        line = child(name, shards)
        found[name] = line.get("error") or round(line["pictures_per_second"], 1)
    return found


def step(bench: str, shards: str) -> dict:
    """A training step that readers keep up with: the rank on one core, a reader on the other."""
    with_data, without = [], []
    for _ in range(TURNS):
        arguments = ["--batch", "32", "--steps", "9"]
        with_data.append(ask(bench, "step", shards, *arguments, pinned=False))
        without.append(ask(bench, "step", f"synthetic:{SAMPLES}", *arguments, pinned=False))
    found = dict(step_seconds=median(with_data, "seconds"), synthetic_seconds=median(without, "seconds"))
    found["step_over_synthetic"] = round(found["step_seconds"] / found["synthetic_seconds"], 4)
    return {key: round(value, 4) for key, value in found.items()}


def memory(bench: str, shards: str) -> dict:
    line = ask(bench, "epochs", shards, "--epochs", "10", "--size", "64", "--readers", "2", pinned=False)
    resident = line["resident_bytes"]
    # The first epoch fills buffers and what is kept of the shards.
    settled = resident[1:]
    spread = (max(settled) - min(settled)) / statistics.median(settled)
    return dict(resident_mib=[round(value / 2**20) for value in resident], memory_spread=round(spread, 4))


def store(bench: str, _: str) -> dict:
    """Ten thousand shards in a store that waits 30 ms before each answer, at 100 MB/s a connection."""
    line = ask(bench, "store", pinned=False)
    parts, counting = [line["all_rows"], line["a_64th"]], line["counting"]
    return dict(
        store_shards=line["shards"],
        store_open_seconds=[round(part["open_seconds"], 2) for part in parts],
        store_first_batch_seconds=[round(part["first_batch_seconds"], 2) for part in parts],
        store_requests_per_block=[round(part["requests_per_block"], 3) for part in parts],
        store_first_batch_requests=[part["first_batch_requests"] for part in parts],
        store_next_requests=[part["next_requests"] for part in parts],
        counted_shards=counting["shards"],
        counted_mb_per_second=round(counting["bytes_per_second"] / 1e6),
        counted_over_bare=round(counting["over_bare"], 3),
    )


PARTS = dict(rates=rates, step=step, memory=memory, store=store)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench")
    parser.add_argument("--peer", nargs=2)
    parser.add_argument("--only", choices=list(PARTS), help="measure this part alone")
    parser.add_argument("--folder", help="where shards are made and kept; default: a temporary folder")
    options = parser.parse_args()
    if options.peer:
        name, shards = options.peer
        with contextlib.redirect_stdout(sys.stderr):
            line = PEERS[name](shards)
        print(json.dumps(line))
        return 0
    with tempfile.TemporaryDirectory(prefix="ringmaster-data-") as temporary:
        folder = options.folder or temporary
        made = ask(options.bench, "shards", folder, "--samples", str(SAMPLES), pinned=False)
        result = dict(bench="data", samples=SAMPLES, kib_per_sample=round(made["bytes"] / SAMPLES / 1024, 1))
        for part in [options.only] if options.only else PARTS:
            result |= PARTS[part](options.bench, made["shards"])
    bars = dict(
        times_openclip=lambda times: times >= OPENCLIP,
        times_plain_loop=lambda times: times >= PLAIN,
        step_over_synthetic=lambda ratio: ratio <= STEP,
        # Between the highest and the lowest: 2 % either way.
        memory_spread=lambda spread: spread <= 2 * MEMORY,
        store_first_batch_seconds=lambda seconds: max(seconds) <= FIRST,
        store_requests_per_block=lambda requests: max(requests) <= REQUESTS,
        counted_over_bare=lambda ratio: ratio >= COUNTING,
    )
    missed = [key for key, holds in bars.items() if key in result and not holds(result[key])]
    result |= dict(missed=missed, passed=not missed)
    print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
