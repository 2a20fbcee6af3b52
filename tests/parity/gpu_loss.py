"""OpenCLIP's losses on one GPU: time, peak memory and values, as one line of JSON.

    python gpu_loss.py --kind siglip|infonce --batch B --dim D [--dtype bf16|f32] [--steps N]
                       [--openclip LOSS_PY]

Three runs on the inputs of `ringmaster-bench loss`: "eager" and "compiled" (torch.compile)
in the given dtype, and "exact": eager in f32 on the same, rounded inputs, for comparing values.
Needs PyTorch for CUDA, and OpenCLIP: installed, or the file of its losses, which needs nothing else.
"""

import argparse
import importlib.util
import json
import math
import statistics
import time

import torch


def losses(path):
    """OpenCLIP's module of losses."""
    if path is None:
        import open_clip.loss

        return open_clip.loss
    spec = importlib.util.spec_from_file_location("openclip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(batch, dim, function, i_factor, j_factor, ij_factor):
    """Unit rows computed in f64, in slices: the f64 matrix itself would count as peak memory."""
    parts = []
    j = torch.arange(dim, dtype=torch.float64, device="cuda").unsqueeze(0)
    for start in range(0, batch, 4096):
        stop = min(batch, start + 4096)
        i = torch.arange(start, stop, dtype=torch.float64, device="cuda").unsqueeze(1)
        raw = function(i_factor * i + j_factor * j + ij_factor * i * j)
        parts.append(torch.nn.functional.normalize(raw, dim=1).float())
    return torch.cat(parts)


def inputs(arguments, dtype):
    """The bench's image and text rows, rounded to the dtype that is compared."""
    rounded = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
    x = rows(arguments.batch, arguments.dim, torch.sin, 0.37, 1.3, 0.11)
    y = rows(arguments.batch, arguments.dim, torch.cos, 0.23, -0.7, 0.13)
    leaf = lambda t: t.to(rounded).to(dtype).requires_grad_()
    return leaf(x), leaf(y)


def measure(arguments, module, dtype, steps):
    """Median time of forward and backward, and the high-water mark beyond inputs and outputs."""
    x, y = inputs(arguments, dtype)
    siglip = arguments.kind == "siglip"
    log_scale = math.log(10.0) if siglip else math.log(1.0 / 0.07)
    t = torch.tensor(log_scale, device="cuda", requires_grad=True)
    bias = torch.tensor(-10.0, device="cuda", requires_grad=True)

    def step():
        for leaf in (x, y, t, bias):
            leaf.grad = None
        scale = t.exp()
        value = module(x, y, scale, bias) if siglip else module(x, y, scale)
        value.backward()
        return value

    step()  # warm-up: compilation, library handles; leaves gradients of the final size
    value = step()
    torch.cuda.synchronize()
    value = value.detach()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        value = step().detach()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(times),
        "peak_bytes": torch.cuda.max_memory_allocated() - before,
        "loss": float(value),
        "grad_abs_x": float(x.grad.double().abs().sum()),
        "grad_abs_y": float(y.grad.double().abs().sum()),
        "grad_scale": float(t.grad),
        "grad_bias": float(bias.grad) if siglip else 0.0,
    }


def attempt(arguments, make, dtype, steps):
    """A measurement, or what kept it from being made."""
    try:
        return measure(arguments, make(), dtype, steps)
    except Exception as error:  # out of memory, no C compiler for torch.compile, ...
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"error": f"{type(error).__name__}: {lines[0]}"}
    finally:
        torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=["siglip", "infonce"], required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--openclip", default=None)
    arguments = parser.parse_args()
    module = losses(arguments.openclip)
    if arguments.kind == "siglip":
        make = lambda: module.SigLipLoss(rank=0, world_size=1)
    else:
        make = lambda: module.ClipLoss(local_loss=True, gather_with_grad=True, rank=0, world_size=1)
    dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
    report = {
        "exact": attempt(arguments, make, torch.float32, 1),
        "eager": attempt(arguments, make, dtype, arguments.steps),
        "compiled": attempt(arguments, lambda: torch.compile(make()), dtype, arguments.steps),
        "pytorch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
