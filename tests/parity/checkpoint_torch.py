"""Compares a checkpoint of ours with torch.save and torch.distributed.checkpoint's async_save.

The same number of f32 values (parameters and two moments), the same folder, in turn, in one run.
What counts for training is the stall: the time until the next step may begin. Needs torch 2.11;
`cargo xtask bench checkpoint` brings it.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

TENSOR = 2_359_296
STALL_LIMIT = 1.2
RATE_LIMIT = 0.8
# The state itself, and what an allocator and a few parts on their way add.
PEAK_LIMIT = 1.05


def made_up_state(params):
    def group():
        sizes = [TENSOR] * (params // TENSOR)
        if params % TENSOR:
            sizes.append(params % TENSOR)
        return {f"w{index}": torch.rand(size) for index, size in enumerate(sizes)}

    return {"model": group(), "exp_avg": group(), "exp_avg_sq": group()}


def sync(path):
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


class PeakMemory:
    """Highest resident memory above the start, sampled: a peak between two looks may be missed."""

    def __enter__(self):
        self.start = self.peak = self.now()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def now(self):
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def watch(self):
        while not self.over.wait(0.005):
            self.peak = max(self.peak, self.now())

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.bytes = self.peak - self.start


def torch_save(state, folder):
    path = folder / "state.pt"
    began = time.perf_counter()
    torch.save(state, path)
    stall = time.perf_counter() - began
    sync(path)
    return {"stall": stall, "write": time.perf_counter() - began}


def async_save(state, folder):
    path = folder / "dcp"
    began = time.perf_counter()
    saving = dcp.async_save(state, checkpoint_id=str(path))
    stall = time.perf_counter() - began
    saving.result()
    sync(path)
    return {"stall": stall, "write": time.perf_counter() - began}


def measure(save, state, repeats, parent):
    rounds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=parent) as folder, PeakMemory() as peak:
            one = save(state, pathlib.Path(folder))
        rounds.append({**one, "peak": peak.bytes})
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def ours(bench, params, folder, repeats, threads):
    command = [bench, "checkpoint", "--params", params, "--uri", folder]
    command += ["--repeats", repeats, "--threads", threads]
    done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(folder)
    os.mkdir(folder)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", required=True, help="the ringmaster-bench program")
    parser.add_argument("--params", type=int, default=150_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where checkpoints are written; default: beside the temporary files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = tempfile.mkdtemp(dir=args.folder)
    mine = ours(args.bench, args.params, folder, args.repeats, args.threads)
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    state = made_up_state(args.params)
    peers = {}
    for name, save in [("torch.save", torch_save), ("dcp.async_save", async_save)]:
        measure(save, state, 1, folder)
        peers[name] = measure(save, state, args.repeats, folder)
    dist.destroy_process_group()
    shutil.rmtree(folder)
    for name, peer in peers.items():
        print(json.dumps({
            "peer": name,
            "stall_seconds": round(peer["stall"], 3),
            "write_seconds": round(peer["write"], 3),
            "peak_over_state": round(peer["peak"] / mine["state_bytes"], 3),
            "stall_over_ours": round(peer["stall"] / mine["stall_seconds"], 2),
            "write_over_ours": round(peer["write"] / mine["write_seconds"], 2),
        }), flush=True)
    limits = {
        "stall_over_copy": mine["stall_over_copy"] <= STALL_LIMIT,
        "write_rate_over_file_copy": mine["write_rate_over_file_copy"] >= RATE_LIMIT,
        "read_rate_over_file_read": mine["read_rate_over_file_read"] >= RATE_LIMIT,
        "peak_over_state": mine["peak_over_state"] <= PEAK_LIMIT,
    }
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in mine.items()}
    print(json.dumps({**rounded, "passed": limits}), flush=True)
    sys.exit(0 if all(limits.values()) else 1)


if __name__ == "__main__":
    main()
