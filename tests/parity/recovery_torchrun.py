"""Strikes a torchrun job with the faults of `ringmaster-faults` and times its next step.

The same tiny CLIP (OpenCLIP's code), global batch and checkpoint interval as ours: SigLipLoss under
DistributedDataParallel over gloo, one agent with one process per node, both nodes on this machine,
a c10d rendezvous that no fault touches. A worker saves every 100 steps and starts from the newest
save, which is what torchrun asks of a script. Prints one JSON line per kind of fault.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

SAVE_EVERY = 100
STEPS_APART = 100


def worker(folder):
    """What torchrun starts: trains until it is killed."""
    import open_clip.loss
    import open_clip.model
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    torch.manual_seed(0)
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    bare = open_clip.model.CLIP(16, vision, text, init_logit_bias=-10.0)
    model = DistributedDataParallel(bare)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    loss_of = open_clip.loss.SigLipLoss(rank=rank, world_size=world_size)
    step, newest = 0, folder / "checkpoint.pt"
    if newest.exists():
        saved = torch.load(newest, weights_only=True)
        bare.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    restart = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    began = time.time()
    images = torch.randn(48 // world_size, 3, 16, 16)
    texts = torch.randint(0, 49408, (48 // world_size, 8))
    metrics = (folder / "metrics.jsonl").open("a") if rank == 0 else None
    while True:
        a, b, scale, bias = model(images, texts)
        loss = loss_of(a, b, scale, bias)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if rank != 0:
            continue
        line = {"step": step, "time": time.time(), "restart": restart, "began": began}
        metrics.write(json.dumps(line) + "\n")
        metrics.flush()
        if step % SAVE_EVERY == 0:
            state = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, folder / "checkpoint.tmp")
            (folder / "checkpoint.tmp").replace(newest)


class Torchrun:
    """Two agents of one process each."""

    def __init__(self, folder, store_port):
        self.folder, self.port = folder, store_port
        self.agents = [self.start(node) for node in range(2)]

    def start(self, node):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc-per-node", "1", "--max-restarts", "1000", "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", f"127.0.0.1:{self.port}", "--rdzv-conf", "is_host=false"]
        command += ["--rdzv-id", "faults", "--local-addr", "127.0.0.1"]
        command += [__file__, "--worker-folder", str(self.folder)]
        log = (self.folder / f"agent-{node}.log").open("a")
        # What agents that are killed leave in their temporary folder goes with this one.
        environment = dict(os.environ, OMP_NUM_THREADS="1", TMPDIR=str(self.folder))
        nothing = subprocess.DEVNULL
        return subprocess.Popen(command, stdin=nothing, stdout=log, stderr=log, env=environment)

    def stop(self):
        for rank in range(2):
            kill(self.pid(rank), signal.SIGKILL)
        for agent in self.agents:
            kill(agent.pid, signal.SIGKILL)
            agent.wait()
        # Workers of agents that were killed outlive them: nobody else ends them.
        for pid in workers(self.folder):
            kill(pid, signal.SIGKILL)

    def pid(self, rank):
        try:
            return int((self.folder / f"pid-{rank}").read_text())
        except (OSError, ValueError):
            return 0


def workers(folder):
    """Processes that were started as workers of this folder."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, NotADirectoryError):
            continue
        if b"--worker-folder" in line and str(folder).encode() in line and b"-m" not in line:
            found.append(int(entry.name))
    return found


def kill(pid, what):
    if pid > 1:
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            pass


def lines(folder):
    try:
        text = (folder / "metrics.jsonl").read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def wait_for(limit, condition):
    """Returns what `condition` gives once that is true, or None after `limit` seconds."""
    until = time.time() + limit
    while time.time() < until:
        if found := condition():
            return found
        time.sleep(0.02)
    return None


def strike(torchrun, kind, seat):
    rank_pid = torchrun.pid(seat)
    if kind == "kill-rank":
        kill(rank_pid, signal.SIGKILL)
    elif kind == "stop-rank":
        kill(rank_pid, signal.SIGSTOP)
    else:
        agent = torchrun.agents[seat]
        kill(agent.pid, signal.SIGKILL)
        agent.wait()
        torchrun.agents[seat] = torchrun.start(seat)


def drill(kind, runs, limit):
    """Returns for every fault: seconds to the next step, and to the first step not done before."""
    import torch.distributed as dist

    recovered = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        torchrun = Torchrun(folder, store.port)
        try:
            for run in range(runs):
                start = lines(folder)[-1]["step"] if lines(folder) else 0
                # Off the grid of the saves, as chance would have it.
                target = start + STEPS_APART + 37 * (run + 1) % STEPS_APART
                reached = lambda: (seen := lines(folder)) and seen[-1]["step"] >= target
                if not wait_for(120, reached):
                    print(f"{kind}: the job does not reach step {target}", file=sys.stderr)
                    break
                before, struck = lines(folder)[-1], time.time()
                strike(torchrun, kind, run % 2)
                newer = lambda: [line for line in lines(folder) if line["began"] > struck]
                if not wait_for(limit, newer):
                    recovered.append((None, None))
                    print(f"{kind} {run + 1}/{runs}: no step within {limit} s", file=sys.stderr)
                    break
                further = lambda: [line for line in newer() if line["step"] > before["step"]]
                caught_up = wait_for(limit, further)
                first = newer()[0]["time"] - struck
                again = caught_up[0]["time"] - struck if caught_up else None
                recovered.append((first, again))
                print(f"{kind} {run + 1}/{runs}: {first:.2f} s", file=sys.stderr)
        finally:
            torchrun.stop()
    return recovered


def end_when_told(parent_pipe):
    """A signal, and the end of stdin if that is a parent's pipe, unwind through `drill`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(128 + number))

    def wait():
        # Not through sys.stdin, whose lock a thread must not hold when the interpreter ends.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if parent_pipe:
        threading.Thread(target=wait, daemon=True).start()


def share(values, share_of):
    values = sorted(values)
    return round(values[min(len(values) - 1, int(share_of * len(values)))], 3) if values else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker-folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", default=["kill-rank", "kill-agent", "stop-rank"])
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a recovery may take")
    parser.add_argument("--parent-pipe", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker_folder:
        return worker(args.worker_folder)
    end_when_told(args.parent_pipe)
    for kind in args.kinds:
        recovered = drill(kind, args.runs, args.limit)
        first = [first for first, _ in recovered if first is not None]
        again = [again for _, again in recovered if again is not None]
        print(json.dumps({
            "peer": "torchrun --max-restarts, gloo",
            "fault": kind,
            "runs": len(recovered),
            "not_recovered_within_limit": sum(first is None for first, _ in recovered),
            "limit_seconds": args.limit,
            "p50_seconds": share(first, 0.5),
            "max_seconds": share(first, 1.0),
            "until_new_work_p50_seconds": share(again, 0.5),
        }), flush=True)


if __name__ == "__main__":
    main()
