"""Compares our all_reduce with gloo's through torch.distributed, in turn, in one run.

One process per rank over loopback, one thread each, an f32 tensor, a barrier before every step, on
both sides. Needs torch 2.11; `cargo xtask bench collective` brings it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WARMUP_STEPS = 2


def rank_main(rank, args, port, results):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=args.ranks)
    tensor = torch.ones(args.bytes // 4)
    seconds = []
    for step in range(WARMUP_STEPS + args.steps):
        tensor.fill_(1.0)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(tensor)
        if step >= WARMUP_STEPS:
            seconds.append(time.perf_counter() - began)
    assert tensor.min() == args.ranks and tensor.max() == args.ranks
    results.put(seconds)
    dist.barrier()
    dist.destroy_process_group()


def gloo(ranks, size, steps):
    """Runs gloo's all_reduce and returns what `bench collective` prints of ours."""
    args = argparse.Namespace(ranks=ranks, bytes=size, steps=steps)
    context = mp.get_context("spawn")
    results = context.Queue()
    # The store lives here and the ranks are its clients: no port is chosen by hand.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        context.Process(target=rank_main, args=(rank, args, store.port, results))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    seconds = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    del store
    slowest = statistics.median(max(step) for step in zip(*seconds))
    return {"seconds": slowest, "gigabytes_per_second": size / slowest / 1e9}


def ours(bench, ranks, size, steps):
    command = [bench, "collective", "--op", "all_reduce", "--ranks", ranks]
    command += ["--bytes", size, "--steps", steps]
    done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", required=True, help="the ringmaster-bench program")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--bytes", type=int, default=64 << 20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=3, help="how often both are measured in turn")
    args = parser.parse_args()
    good = True
    for ranks in args.ranks:
        pairs = []
        for _ in range(args.pairs):
            mine = ours(args.bench, ranks, args.bytes, args.steps)
            pairs.append((mine, gloo(ranks, args.bytes, args.steps)))
        rate = "gigabytes_per_second"
        times_faster = statistics.median(m[rate] / t[rate] for m, t in pairs)
        good = good and times_faster >= 1.0
        print(json.dumps({
            "op": "all_reduce",
            "ranks": ranks,
            "bytes": args.bytes,
            rate: [round(mine[rate], 3) for mine, _ in pairs],
            "gloo_" + rate: [round(theirs[rate], 3) for _, theirs in pairs],
            "times_faster": round(times_faster, 3),
            "passed": times_faster >= 1.0,
            "copy_" + rate: round(pairs[0][0]["copy_" + rate], 3),
            "socket_" + rate: round(pairs[0][0]["socket_" + rate], 3),
        }), flush=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
