"""Measures gloo's all_reduce through torch.distributed and prints one line of JSON.

Needs torch 2.11:

    python tests/parity/collective_gloo.py --ranks 2 --bytes 67108864

One process per rank over loopback, one thread each, an f32 tensor, barrier before every step: as
`ringmaster-worker bench collective --op all_reduce` does it, so that the two lines compare.
"""

import argparse
import json
import statistics
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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    context = mp.get_context("spawn")
    results = context.Queue()
    # The store lives here and the ranks are its clients: no port is chosen by hand.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [
        context.Process(target=rank_main, args=(rank, args, store.port, results))
        for rank in range(args.ranks)
    ]
    for process in ranks:
        process.start()
    seconds = [results.get(timeout=300) for _ in ranks]
    for process in ranks:
        process.join()
    del store
    slowest = statistics.median(max(step) for step in zip(*seconds))
    print(
        json.dumps(
            {
                "op": "all_reduce",
                "backend": "gloo",
                "ranks": args.ranks,
                "bytes": args.bytes,
                "steps": args.steps,
                "seconds": slowest,
                "gigabytes_per_second": args.bytes / slowest / 1e9,
            }
        )
    )


if __name__ == "__main__":
    main()
