#!/usr/bin/env python3
"""Compares `ringmaster-bench loss` with OpenCLIP's own losses, in one run on one machine.

For every case the same inputs go through open_clip's SigLipLoss (bidir) or ClipLoss (local_loss,
gather_with_grad) under gloo, one process and one thread per rank, and through the bench. Loss and
gradient sums must agree to 1e-5 relative (the wave sums relative to the absolute sums).
`cargo xtask bench parity` runs it; with --speed, as `cargo xtask bench loss` does, it compares time and
memory of one shape instead.
"""

import argparse
import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import time

FIELDS = ("loss", "grad_abs_x", "grad_abs_y", "grad_scale", "grad_bias")
WAVES = (("grad_wave_x", "grad_abs_x"), ("grad_wave_y", "grad_abs_y"))
TOLERANCE = 1e-5


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def embeddings(torch, start, rows, dim, spread):
    """Rows start.. of both sides, in f64, as the bench documents them."""
    j = torch.arange(dim, dtype=torch.float64)[None, :]

    def side(wave):
        first = unit(wave(torch.zeros(1, 1, dtype=torch.float64)))
        own = unit(wave(torch.arange(start, start + rows, dtype=torch.float64)[:, None]))
        return own if spread == 1.0 else unit(first + (own - first) * spread)

    return (
        side(lambda i: torch.sin(0.37 * i + 1.3 * j + 0.11 * i * j)),
        side(lambda i: torch.cos(0.23 * i - 0.7 * j + 0.13 * i * j)),
    )


def peak_reset():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return resident("VmRSS")


def resident(key):
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def peer(case):
    """One rank: OpenCLIP's loss, forward and backward, gradients of the global-batch mean."""
    import torch
    import torch.distributed as dist
    from open_clip.loss import ClipLoss, SigLipLoss

    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore("127.0.0.1", int(os.environ["STORE_PORT"]), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    b, dim = case["local_batch"], case["dim"]
    x, y = embeddings(torch, rank * b, b, dim, case["spread"])
    x, y = x.float().requires_grad_(), y.float().requires_grad_()
    log_scale = torch.tensor(case["log_scale"], dtype=torch.float32, requires_grad=True)
    bias = torch.tensor(case["logit_bias"], dtype=torch.float32, requires_grad=True)
    if case["kind"] == "siglip":
        loss_fn = SigLipLoss(rank=rank, world_size=world, dist_impl="bidir")
    else:
        loss_fn = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)

    def step():
        for leaf in (x, y, log_scale, bias):
            leaf.grad = None
        if case["kind"] == "siglip":
            loss = loss_fn(x, y, log_scale.exp(), bias)
        else:
            loss = loss_fn(x, y, log_scale.exp())
        # The mean over ranks is the global-batch mean, as DDP averages it.
        (loss / world).backward()
        return loss.detach().double() / world

    for _ in range(2):
        step()
    seconds = []
    for _ in range(case["steps"]):
        dist.barrier()
        began = time.monotonic()
        step()
        dist.barrier()
        seconds.append(time.monotonic() - began)
    before = peak_reset()
    loss = step()
    risen = resident("VmHWM") - before

    i = torch.arange(rank * b, (rank + 1) * b, dtype=torch.float64)[:, None]
    wave = torch.sin(i + 2.0 * torch.arange(dim, dtype=torch.float64)[None, :])
    zero = torch.zeros((), dtype=torch.float64)
    sums = torch.stack([
        loss,
        x.grad.double().abs().sum(),
        y.grad.double().abs().sum(),
        (x.grad.double() * wave).sum(),
        (y.grad.double() * wave).sum(),
        log_scale.grad.double(),
        zero if bias.grad is None else bias.grad.double(),
    ])
    dist.all_reduce(sums)
    if rank == 0:
        names = ("loss", "grad_abs_x", "grad_abs_y", "grad_wave_x", "grad_wave_y", "grad_scale", "grad_bias")
        result = dict(zip(names, sums.tolist()))
        result.update(seconds=statistics.median(seconds), peak_bytes=risen)
        print(json.dumps(result))
    dist.destroy_process_group()


def run_peer(case, limit=300):
    import torch.distributed as dist

    # The store lives here and the ranks are its clients: no port is chosen by hand.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = dict(os.environ, OMP_NUM_THREADS="1", STORE_PORT=str(store.port))
    env["WORLD_SIZE"] = str(case["ranks"])
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "--peer", json.dumps(case)],
            env=dict(env, RANK=str(rank)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(case["ranks"])
    ]
    try:
        outputs = [rank.communicate(timeout=limit)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"the peer failed on {case}")
    return json.loads(outputs[0].strip().splitlines()[-1])


def run_bench(bench, case, extra=()):
    command = [bench, "loss", "--kind", case["kind"], "--ranks", case["ranks"]]
    command += ["--local-batch", case["local_batch"], "--dim", case["dim"], "--steps", case["steps"]]
    command += [f"--log-scale={case['log_scale']!r}", f"--logit-bias={case['logit_bias']!r}"]
    command += [f"--spread={case['spread']!r}", *extra]
    output = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(output.stdout)


def relative(ours, theirs, by):
    return 0.0 if ours == theirs else abs(ours - theirs) / max(abs(by), 1e-300)


def differences(ours, theirs):
    found = {name: relative(ours[name], theirs[name], theirs[name]) for name in FIELDS}
    found.update({wave: relative(ours[wave], theirs[wave], theirs[by]) for wave, by in WAVES})
    return found


def case(kind, ranks, local_batch, dim, log_scale=None, spread=1.0, steps=1):
    default = math.log(10) if kind == "siglip" else math.log(1 / 0.07)
    return {
        "kind": kind,
        "ranks": ranks,
        "local_batch": local_batch,
        "dim": dim,
        "log_scale": default if log_scale is None else log_scale,
        "logit_bias": -10.0,
        "spread": spread,
        "steps": steps,
    }


def parity(bench):
    cases = []
    for kind in ("siglip", "infonce"):
        for ranks in (1, 2, 3, 4):
            cases.append(case(kind, ranks, 37, 48))
        cases += [
            case(kind, 2, 300, 512),
            case(kind, 4, 64, 768),
            case(kind, 3, 129, 96, log_scale=math.log(100)),
            case(kind, 2, 64, 64, spread=0.05),
            case(kind, 2, 64, 64, log_scale=math.log(100), spread=0.05),
        ]
    worst, failed = 0.0, 0
    print(f"{'kind':8} {'exchange':10} {'W':>2} {'b':>4} {'d':>4} {'scale':>6} {'spread':>6}  largest difference")
    for one in cases:
        theirs = run_peer(one)
        exchanges = ("ring",) if one["kind"] == "siglip" else ("all_gather", "ring")
        for exchange in exchanges:
            ours = run_bench(bench, one, ("--exchange", exchange))
            found = differences(ours, theirs)
            name = max(found, key=found.get)
            ok = found[name] <= TOLERANCE
            failed += not ok
            worst = max(worst, found[name])
            print(
                f"{one['kind']:8} {exchange:10} {one['ranks']:2} {one['local_batch']:4} {one['dim']:4} "
                f"{math.exp(one['log_scale']):6.1f} {one['spread']:6.2f}  {found[name]:.1e} {name}"
                + ("" if ok else "   FAILED")
            )
    print(json.dumps({"claim": "parity", "tolerance": TOLERANCE, "worst": worst, "failed": failed}))
    return failed == 0


def speed(bench, steps):
    """W = 2, b = 1024, d = 512; ours before and after the peer's, so that a change of the machine's
    pace shows, and the better of the two counts."""
    good = True
    for kind, extra in (("siglip", ()), ("infonce", ()), ("infonce", ("--exchange", "ring"))):
        one = case(kind, 2, 1024, 512, steps=steps)
        before, theirs, after = run_bench(bench, one, extra), run_peer(one), run_bench(bench, one, extra)
        ours = min(before, after, key=lambda run: run["seconds"])
        over_floor = min(before["seconds_over_floor"], after["seconds_over_floor"])
        times_faster = theirs["seconds"] / ours["seconds"]
        if kind == "siglip":
            claims = {"over floor <= 1.20": over_floor <= 1.20, "peak <= 8 MiB": ours["peak_bytes"] <= 8 << 20}
        else:
            claims = {"times faster >= 1.5": times_faster >= 1.5}
        good = good and all(claims.values())
        print(json.dumps({
            "kind": kind,
            "exchange": ours["exchange"],
            "seconds": [before["seconds"], after["seconds"]],
            "openclip_seconds": theirs["seconds"],
            "times_faster": times_faster,
            "seconds_over_floor": [before["seconds_over_floor"], after["seconds_over_floor"]],
            "peak_bytes": ours["peak_bytes"],
            "openclip_peak_bytes": theirs["peak_bytes"],
            "passed": claims,
        }), flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", help="the ringmaster-bench program")
    parser.add_argument("--speed", action="store_true", help="time and memory instead of parity")
    parser.add_argument("--steps", type=int, default=9, help="measured steps of --speed")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        peer(json.loads(args.peer))
        return
    if not args.bench:
        parser.error("--bench is needed")
    good = speed(args.bench, args.steps) if args.speed else parity(args.bench)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
