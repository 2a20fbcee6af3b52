"""Writes the golden file of the model's parity test: OpenCLIP's weights, inputs, outputs, gradients.

Needs torch 2.11 and the package `open_clip` of open-clip-torch==3.3.0 importable:

    python tests/parity/model_golden.py tests/parity/golden

Each file holds a tiny model whose weights are random everywhere (ones and zeros of a fresh model
would hide mistakes): `param.<key>`, `grad.<key>` of sum(image * weight_image) + sum(text *
weight_text), the inputs `images` and `tokens`, the outputs `image` and `text`, and the model's
configuration in OpenCLIP's format under the metadata key `config`.
"""

import json
import pathlib
import struct
import sys

import torch
from open_clip.model import CLIP, CustomTextCLIP

BATCH = 4
VARIANTS = {
    "clip-tok": dict(
        embed_dim=12,
        vision_cfg=dict(layers=2, width=16, head_width=8, mlp_ratio=2.0, patch_size=4, image_size=14),
        text_cfg=dict(context_length=9, vocab_size=40, width=24, heads=3, layers=2),
        init_logit_bias=-10.0,
    ),
    "custom-avg-quickgelu": dict(
        embed_dim=8,
        quick_gelu=True,
        custom_text=True,
        vision_cfg=dict(
            layers=2, width=24, head_width=12, patch_size=5, image_size=10, no_ln_pre=True,
            pool_type="avg", final_ln_after_pool=True,
        ),
        text_cfg=dict(
            context_length=6, vocab_size=40, width=16, heads=2, layers=2, mlp_ratio=2.0,
            no_causal_mask=True, pool_type="last",
        ),
    ),
}


def save(path: pathlib.Path, tensors: dict, config: dict) -> None:
    """Writes safetensors: a header of JSON, then the data (no package needed)."""
    header, blobs, offset = {"__metadata__": {"config": json.dumps(config)}}, [], 0
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().contiguous().numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        header[name] = dict(
            dtype=kind, shape=list(tensor.shape), data_offsets=[offset, offset + len(data)]
        )
        blobs.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def captions(length: int, vocab_size: int) -> torch.Tensor:
    tokens = torch.zeros(BATCH, length, dtype=torch.long)
    for row in range(BATCH):
        end = 1 + (row * 3) % (length - 1)
        tokens[row, :end] = torch.randint(1, vocab_size - 1, (end,))
        tokens[row, end] = vocab_size - 1
    return tokens


def golden(name: str, config: dict, folder: pathlib.Path) -> None:
    torch.manual_seed(0)
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    model = (CustomTextCLIP if config.get("custom_text") else CLIP)(**arguments)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    size = config["vision_cfg"]["image_size"]
    images = torch.randn(BATCH, 3, size, size)
    tokens = captions(config["text_cfg"]["context_length"], config["text_cfg"]["vocab_size"])
    image, text = model.encode_image(images), model.encode_text(tokens)
    weight_image, weight_text = torch.randn_like(image), torch.randn_like(text)
    ((image * weight_image).sum() + (text * weight_text).sum()).backward()
    tensors = dict(images=images, tokens=tokens, image=image, text=text)
    tensors |= dict(weight_image=weight_image, weight_text=weight_text)
    for key, parameter in model.named_parameters():
        tensors[f"param.{key}"] = parameter
        if parameter.grad is not None:
            tensors[f"grad.{key}"] = parameter.grad
    save(folder / f"model-{name}.safetensors", tensors, config)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in VARIANTS.items():
        golden(name, config, folder)


if __name__ == "__main__":
    main()
