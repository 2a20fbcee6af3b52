"""Writes the golden files of the weights' tests: tiny checkpoints of every format, and what is in them.

Needs what `cargo xtask parity` installs:

    python tests/parity/weights_golden.py tests/parity/golden

`weights-NAME.*` is a checkpoint as PyTorch, OpenAI or Google write it; `weights-NAME.safetensors` beside
it holds the tensors that PyTorch, OpenCLIP or timm find in it, in f32.
"""

import os
import pathlib
import sys
import zipfile
from types import SimpleNamespace

import model_golden
import numpy
import timm
import torch
from open_clip.convert import load_big_vision_weights
from open_clip.model import resize_pos_embed, resize_text_pos_embed

WIDTH, HEADS, DEPTH, HIDDEN, TOKENS, VOCABULARY = 8, 2, 2, 12, 4, 10


def views() -> dict:
    """Tensors that are more than an array: parts, transposes, repetitions, several types."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    return {
        "whole": base,
        "part": base[1:3, 2:5],
        "transposed": base.t(),
        "every_other": base[:, ::2],
        "expanded": torch.tensor([[1.5], [2.5]]).expand(2, 3),
        "half": base.half(),
        "brain": base.bfloat16(),
        "double": base.double(),
        "counts": torch.tensor([3, -4, 1 << 40]),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "scalar": torch.tensor(2.6593),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[0].clone()),
    }


def expect(path: pathlib.Path, tensors: dict) -> None:
    floats = {name: tensor.detach().float() for name, tensor in tensors.items()}
    model_golden.save(path, floats, {})


class Toy(torch.nn.Module):
    """What an archive of OpenAI's looks like: modules in modules, and three numbers beside."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.conv1 = torch.nn.Conv2d(3, 4, 2, bias=False)
        self.visual.ln = torch.nn.LayerNorm(4)
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.logit_scale


def training_checkpoint(folder: pathlib.Path) -> None:
    """An `epoch_1.pt` of OpenCLIP's, after two steps of AdamW."""
    model = torch.nn.Linear(3, 2)
    groups = [dict(params=[model.bias], weight_decay=0.0), dict(params=[model.weight])]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.2)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    checkpoint = {
        "epoch": 1,
        "name": "toy",
        "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, folder / "weights-epoch.pt")
    expect(folder / "weights-epoch.safetensors", model.state_dict())


def flax_attention(rng: numpy.random.Generator, prefix: str, lead: tuple) -> dict:
    head = WIDTH // HEADS
    arrays = {}
    for part in ("query", "key", "value"):
        arrays[f"{prefix}{part}/kernel"] = rng.normal(size=lead + (WIDTH, HEADS, head))
        arrays[f"{prefix}{part}/bias"] = rng.normal(size=lead + (HEADS, head))
    arrays[f"{prefix}out/kernel"] = rng.normal(size=lead + (HEADS, head, WIDTH))
    arrays[f"{prefix}out/bias"] = rng.normal(size=lead + (WIDTH,))
    return arrays


def flax_norm(rng: numpy.random.Generator, prefix: str, lead: tuple = ()) -> dict:
    return {f"{prefix}{part}": rng.normal(size=lead + (WIDTH,)) for part in ("scale", "bias")}


def flax_mlp(rng: numpy.random.Generator, prefix: str, lead: tuple = ()) -> dict:
    arrays = {}
    for layer, (inputs, outputs) in enumerate([(WIDTH, HIDDEN), (HIDDEN, WIDTH)]):
        arrays[f"{prefix}Dense_{layer}/kernel"] = rng.normal(size=lead + (inputs, outputs))
        arrays[f"{prefix}Dense_{layer}/bias"] = rng.normal(size=lead + (outputs,))
    return arrays


def flax_blocks(rng, prefix: str, stacked: bool, numbers: tuple = (0, 1, 0)) -> dict:
    attention, second, mlp = numbers
    arrays = {}
    blocks = [("encoderblock/", (DEPTH,))] if stacked else [
        (f"encoderblock_{index}/", ()) for index in range(DEPTH)
    ]
    for block, lead in blocks:
        name = f"{prefix}{block}"
        arrays |= flax_norm(rng, f"{name}LayerNorm_0/", lead)
        arrays |= flax_attention(rng, f"{name}MultiHeadDotProductAttention_{attention}/", lead)
        arrays |= flax_norm(rng, f"{name}LayerNorm_{second}/", lead)
        arrays |= flax_mlp(rng, f"{name}MlpBlock_{mlp}/", lead)
    return arrays | flax_norm(rng, f"{prefix}encoder_norm/")


def big_vision(folder: pathlib.Path, stacked: bool) -> None:
    rng = numpy.random.default_rng(0)
    img, txt = "params/img/", "params/txt/"
    arrays = {
        f"{img}embedding/kernel": rng.normal(size=(14, 14, 3, WIDTH)),
        f"{img}embedding/bias": rng.normal(size=(WIDTH,)),
        f"{img}pos_embedding": rng.normal(size=(1, 4, WIDTH)),
        f"{txt}Embed_0/embedding": rng.normal(size=(VOCABULARY, WIDTH)),
        f"{txt}pos_embedding": rng.normal(size=(1, TOKENS, WIDTH)),
        f"{txt}head/kernel": rng.normal(size=(WIDTH, WIDTH)),
        f"{txt}head/bias": rng.normal(size=(WIDTH,)),
        "params/t": rng.normal(size=(1,)),
        "params/b": rng.normal(size=(1,)),
        f"{img}MAPHead_0/probe": rng.normal(size=(1, 1, WIDTH)),
    }
    arrays |= flax_blocks(rng, f"{img}Transformer/", stacked)
    arrays |= flax_blocks(rng, f"{txt}Encoder_0/", stacked)
    arrays |= flax_attention(rng, f"{img}MAPHead_0/MultiHeadDotProductAttention_0/", ())
    arrays |= flax_norm(rng, f"{img}MAPHead_0/LayerNorm_0/")
    arrays |= flax_mlp(rng, f"{img}MAPHead_0/MlpBlock_0/")
    name = "weights-big-vision-stacked" if stacked else "weights-big-vision"
    arrays = {key: value.astype(numpy.float32) for key, value in arrays.items()}
    (numpy.savez_compressed if stacked else numpy.savez)(folder / f"{name}.npz", **arrays)
    ratio = HIDDEN / WIDTH
    trunk = dict(embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=ratio, patch_size=14)
    model = model_golden.build(dict(
        embed_dim=WIDTH, init_logit_bias=-10, custom_text=True,
        vision_cfg=dict(
            timm_model_name="vit_base_patch16_siglip_224", image_size=28, timm_pool="map",
            timm_proj="none", timm_model_kwargs=trunk,
        ),
        text_cfg=model_golden.SIGLIP_TEXT | dict(
            context_length=TOKENS, vocab_size=VOCABULARY, width=WIDTH, heads=HEADS, layers=DEPTH,
            mlp_ratio=ratio,
        ),
    ))
    with torch.no_grad():
        load_big_vision_weights(model, str(folder / f"{name}.npz"))
    expect(folder / f"{name}.safetensors", model.state_dict())


def augreg(folder: pathlib.Path) -> None:
    rng = numpy.random.default_rng(1)
    arrays = {
        "embedding/kernel": rng.normal(size=(14, 14, 3, WIDTH)),
        "embedding/bias": rng.normal(size=(WIDTH,)),
        "cls": rng.normal(size=(1, 1, WIDTH)),
        "Transformer/posembed_input/pos_embedding": rng.normal(size=(1, 5, WIDTH)),
        "head/kernel": rng.normal(size=(WIDTH, 3)),
        "head/bias": rng.normal(size=(3,)),
    }
    arrays |= flax_blocks(rng, "Transformer/", False, numbers=(1, 2, 3))
    arrays = {key: value.astype(numpy.float32) for key, value in arrays.items()}
    numpy.savez(folder / "weights-augreg.npz", **arrays)
    model = timm.create_model(
        "vit_base_patch16_224", img_size=28, patch_size=14, embed_dim=WIDTH, depth=DEPTH,
        num_heads=HEADS, mlp_ratio=HIDDEN / WIDTH, num_classes=0,
    )
    model.load_pretrained(str(folder / "weights-augreg.npz"))
    expect(folder / "weights-augreg.safetensors", model.state_dict())


def positions(folder: pathlib.Path) -> None:
    """Position embeddings, and what OpenCLIP's loading resizes them to."""
    tensors = {}
    for grid, new in ((2, 3), (4, 2), (3, 7)):
        given = torch.randn(grid * grid + 1, 8)
        visual = SimpleNamespace(grid_size=(new, new))
        state = {"visual.positional_embedding": given}
        resize_pos_embed(state, SimpleNamespace(visual=visual))
        tensors[f"image.{new}.given"] = given
        tensors[f"image.{new}.resized"] = state["visual.positional_embedding"]
    for length, new in ((7, 11), (11, 4)):
        given = torch.randn(length, 8)
        state = {"positional_embedding": given}
        resize_text_pos_embed(state, SimpleNamespace(positional_embedding=torch.zeros(new, 8)))
        tensors[f"text.{new}.given"] = given
        tensors[f"text.{new}.resized"] = state["positional_embedding"]
    expect(folder / "weights-positions.safetensors", tensors)


class Malice:
    def __reduce__(self):
        return os.system, ("touch malice-was-here",)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    torch.manual_seed(0)
    tensors = views()
    torch.save(tensors, folder / "weights-zip.pt")
    expect(folder / "weights-zip.safetensors", tensors)
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}
    torch.save(wrapped, folder / "weights-legacy.pt", _use_new_zipfile_serialization=False)
    expect(folder / "weights-legacy.safetensors", tensors)
    # A storage that no tensor views lies between two that tensors do.
    lone = {"first": torch.ones(3), "lone": torch.FloatStorage([7.0, 8.0]), "last": torch.arange(4.0)}
    torch.save(lone, folder / "weights-legacy-lone.pt", _use_new_zipfile_serialization=False)
    expect(folder / "weights-legacy-lone.safetensors", {key: lone[key] for key in ("first", "last")})
    toy = Toy()
    torch.jit.script(toy).save(str(folder / "weights-script.pt"))
    kept = {key: tensor for key, tensor in toy.state_dict().items() if "." in key or "logit" in key}
    expect(folder / "weights-script.safetensors", kept)
    training_checkpoint(folder)
    for stacked in (False, True):
        big_vision(folder, stacked)
    augreg(folder)
    positions(folder)
    torch.save({"state_dict": {}, "surprise": Malice()}, folder / "weights-malice.pt")
    with zipfile.ZipFile(folder / "weights-malice.pt") as archive:
        assert any(name.endswith("data.pkl") for name in archive.namelist())


if __name__ == "__main__":
    main()
