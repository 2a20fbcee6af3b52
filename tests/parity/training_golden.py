"""Writes a training checkpoint of a small OpenCLIP model, and what the next step of AdamW makes of it.

    python tests/parity/training_golden.py tests/parity/golden

`training-epoch.pt` is what `open_clip_train` saves after three steps; `training-epoch.safetensors` holds by
name the moments in it, the gradients of a fourth step and the parameters after that. `training-tiny.pt` is
the same of a model that reads the captions of a small vocabulary, for whole runs.
"""

import copy
import json
import pathlib
import sys

import model_golden
import open_clip
import torch

CONFIG = dict(
    embed_dim=8,
    vision_cfg=dict(layers=1, width=8, head_width=4, mlp_ratio=2.0, patch_size=4, image_size=8),
    text_cfg=dict(context_length=5, vocab_size=12, width=8, heads=2, layers=1, mlp_ratio=2.0),
)
TINY = dict(
    embed_dim=16,
    vision_cfg=dict(layers=1, width=16, head_width=8, mlp_ratio=1.0, patch_size=8, image_size=16),
    text_cfg=dict(context_length=8, vocab_size=500, width=16, heads=2, layers=1, mlp_ratio=1.0),
)
LR, BETAS, EPS, WD = 3e-3, (0.9, 0.95), 1e-6, 0.2


def groups(model: torch.nn.Module) -> list:
    """The groups of `open_clip_train.main`."""
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        kept = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (plain if kept else decayed).append(parameter)
    return [dict(params=plain, weight_decay=0.0), dict(params=decayed, weight_decay=WD)]


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def train(config: dict, path: pathlib.Path) -> tuple:
    """Makes three steps and saves as `open_clip_train` does."""
    torch.manual_seed(11)
    model = open_clip.CLIP(**copy.deepcopy(config), init_logit_bias=-10.0)
    optimizer = torch.optim.AdamW(groups(model), lr=LR, betas=BETAS, eps=EPS)
    for _ in range(3):
        step(model, optimizer)
    checkpoint = {
        "epoch": 2,
        "name": "tiny",
        "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, path)
    return model, optimizer


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    train(TINY, folder / "training-tiny.pt")
    model, optimizer = train(CONFIG, folder / "training-epoch.pt")
    tensors = {}
    for name, parameter in model.named_parameters():
        for mean in ("exp_avg", "exp_avg_sq"):
            tensors[f"{mean}.{name}"] = optimizer.state[parameter][mean].clone()
    step(model, optimizer)
    for name, parameter in model.named_parameters():
        tensors[f"grad.{name}"] = parameter.grad
        tensors[f"next.{name}"] = parameter.detach()
    config = json.dumps(dict(CONFIG, init_logit_bias=-10.0))
    model_golden.save(folder / "training-epoch.safetensors", tensors, dict(config=config))


if __name__ == "__main__":
    main()
