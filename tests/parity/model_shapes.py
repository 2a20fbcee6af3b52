"""Writes what OpenCLIP's models are made of: the number of parameters of each tower, and a digest of
the names and shapes of the state dict.

Needs what `cargo xtask parity` installs:

    python tests/parity/model_shapes.py tests/parity/golden/shapes-of-models.json

Nothing is computed and nothing downloaded: the models stand on torch's `meta` device, and RoBERTa's
configurations are given by their published numbers.
"""

import hashlib
import json
import pathlib
import re
import sys
from unittest import mock

import open_clip
import torch
from transformers import AutoConfig

FAMILIES = re.compile(r"(RN|ViT-|convnext_|roberta-|xlm-roberta-)")


def hugging_face_config(name: str, **_) -> object:
    """Stands in for a look-up on the hub."""
    width, layers, heads = (1024, 24, 16) if name.endswith("-large") else (768, 12, 12)
    kind = "xlm-roberta" if name.startswith("xlm-") else "roberta"
    return AutoConfig.for_model(
        kind, vocab_size=250002 if kind == "xlm-roberta" else 50265, hidden_size=width,
        num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
    )


def facts(name: str) -> dict:
    config = open_clip.get_model_config(name)
    config["text_cfg"].pop("hf_model_pretrained", None)
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
        config["custom_text"] = True
    custom = config.pop("custom_text", False)
    with torch.device("meta"):
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())
    total, image = count(model), count(model.visual)
    scalars = 1 + (model.logit_bias is not None)
    lines = sorted(f"{key} {list(tensor.shape)}" for key, tensor in model.state_dict().items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return dict(image=image, text=total - image - scalars, digest=digest)


def main() -> None:
    names = [name for name in open_clip.list_models() if FAMILIES.match(name)]
    with mock.patch("open_clip.hf_model.AutoConfig.from_pretrained", hugging_face_config):
        table = {name: facts(name) for name in names}
    text = ",\n".join(f'  "{name}": {json.dumps(table[name])}' for name in sorted(table))
    pathlib.Path(sys.argv[1]).write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
