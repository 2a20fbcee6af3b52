"""Compares full-size models with OpenCLIP, both ways.

For every model: OpenCLIP builds it with seeded random weights and saves them; `ringmaster-worker model
run` loads them and embeds the same images and captions; `model export` writes them back, OpenCLIP loads
that folder strictly, and its outputs have to be the same bits as before. `model export --layout
transformers` is loaded by Hugging Face's classes where they have such a model.

    cargo xtask parity [-- --models ViT-B-32,RN50 --worker PATH]
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import open_clip
import torch
from safetensors.torch import load_file, save_file

MODELS = [
    "ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14", "RN50", "ViT-B-16-SigLIP",
    "ViT-SO400M-14-SigLIP-384", "ViT-B-16-SigLIP2", "convnext_base", "ViT-L-14-CLIPA",
]
BATCH = 2


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def captions(config: dict) -> torch.Tensor:
    text = config["text_cfg"]
    length, vocabulary = text["context_length"], text["vocab_size"]
    tokens = torch.randint(2, vocabulary - 1, (BATCH, length))
    tokens[0, length // 2:] = 0
    tokens[0, length // 2 - 1] = vocabulary - 1
    return tokens


def build(name: str) -> tuple:
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    custom = config.pop("custom_text", False)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config).eval()
    # What starts at a constant would hide mistakes.
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.02)
    return config, model


@torch.no_grad()
def embed(model: torch.nn.Module, inputs: dict) -> dict:
    return dict(
        image_features=model.encode_image(inputs["image"]),
        text_features=model.encode_text(inputs["text"]),
    )


def transformers_outputs(folder: pathlib.Path, inputs: dict) -> dict | None:
    from transformers import CLIPModel, SiglipModel

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    model, problems = (SiglipModel if kind == "siglip" else CLIPModel).from_pretrained(
        folder, output_loading_info=True
    )
    assert not problems["missing_keys"] and not problems["unexpected_keys"], problems
    model.eval()
    with torch.no_grad():
        outputs = (
            model.get_image_features(pixel_values=inputs["image"]),
            model.get_text_features(input_ids=inputs["text"]),
        )
    pooled = [getattr(output, "pooler_output", output) for output in outputs]
    return dict(image_features=pooled[0], text_features=pooled[1])


def compare(name: str, worker: str) -> dict:
    config, model = build(name)
    size = config["vision_cfg"]["image_size"]
    inputs = dict(image=torch.randn(BATCH, 3, size, size), text=captions(config))
    expected = embed(model, inputs)
    # Through batch norms and 7 × 7 convolutions rounding grows.
    tolerance = 1e-4 if name.startswith(("RN", "convnext")) else 1e-5
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        save_file(model.state_dict(), folder / "theirs.safetensors")
        save_file(inputs, folder / "inputs.safetensors")
        of_model = ["--model", name, "--pretrained", str(folder / "theirs.safetensors")]

        def run(*arguments: str) -> None:
            subprocess.run([worker, "model", *arguments], check=True, stdout=subprocess.DEVNULL)

        began = time.monotonic()
        run("run", *of_model, "--inputs", f"{folder}/inputs.safetensors", "--out", f"{folder}/out.st")
        seconds = time.monotonic() - began
        ours = load_file(folder / "out.st")
        result = dict(model=name, seconds=round(seconds, 1), tolerance=tolerance)
        for key, value in expected.items():
            result[key] = relative(ours[key], value)
        run("export", *of_model, "--out", f"{folder}/back")
        # OpenCLIP loads a folder strictly: a missing or unexpected key raises.
        again, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}/back")
        back = embed(again.eval(), inputs)
        result["bit_equal_after_export"] = all(torch.equal(back[key], expected[key]) for key in expected)
        result["passed"] = result["bit_equal_after_export"] and all(
            result[key] <= tolerance for key in expected
        )
        if not name.startswith(("RN", "convnext")) and "CLIPA" not in name:
            run("export", *of_model, "--layout", "transformers", "--out", f"{folder}/hf")
            theirs = transformers_outputs(folder / "hf", inputs)
            result["transformers"] = max(relative(theirs[key], expected[key]) for key in expected)
            result["passed"] = result["passed"] and result["transformers"] <= tolerance
    return result


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--worker", required=True)
    options = parser.parse_args()
    passed = True
    for name in options.models.split(","):
        result = compare(name, options.worker)
        print(json.dumps(result), flush=True)
        passed &= result["passed"]
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
