"""Writes the golden files of the models' parity tests: OpenCLIP's weights, inputs, outputs, gradients.

Needs what `cargo xtask parity` installs:

    python tests/parity/model_golden.py tests/parity/golden [NAME ...]

Each file holds a tiny model of one family whose weights are random everywhere (ones and zeros of a
fresh model would hide mistakes): `param.<key>` of its state dict, `grad.<key>` of
sum(image * weight_image) + sum(text * weight_text), the inputs `images` and `tokens`, the outputs
`image` and `text`, and, where a forward pass changes them, the statistics `after.<key>`. The
metadata key `config` is the model's configuration in OpenCLIP's format, with `timm_model_kwargs` and
`hf_model_config` for what shrinks a named tower; `mode` is `train` or `eval`, `tolerance` how near
outputs and gradients have to be.
"""

import contextlib
import json
import pathlib
import struct
import sys
from unittest import mock

import timm
import torch
from open_clip import hf_model
from open_clip.model import CLIP, CustomTextCLIP

BATCH = 4
VISION = dict(layers=2, width=16, head_width=8, mlp_ratio=2.0, patch_size=4, image_size=12)
TEXT = dict(context_length=7, vocab_size=40, width=16, heads=2, layers=2, mlp_ratio=2.0)
TRUNK = dict(embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, patch_size=14)
SIGLIP_TEXT = TEXT | dict(
    no_causal_mask=True, pool_type="last", proj_bias=True, norm_kwargs=dict(eps=1e-6)
)
ROBERTA = dict(
    model_type="roberta", vocab_size=40, hidden_size=16, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=24, max_position_embeddings=12, type_vocab_size=1,
    layer_norm_eps=1e-5, pad_token_id=1,
)
CONVNEXT = dict(
    timm_model_name="convnext_tiny", timm_pool="", image_size=64,
    timm_model_kwargs=dict(depths=[1, 1, 2, 1], dims=[4, 8, 12, 16]),
)
RESNET = dict(layers=[1, 2, 1, 1], width=2, head_width=16, image_size=64)


def trunk(name: str, **vision) -> dict:
    return dict(timm_model_name=name, image_size=28, timm_model_kwargs=TRUNK) | vision


VARIANTS = {
    "clip-tok": dict(
        embed_dim=12,
        vision_cfg=VISION | dict(image_size=14),
        text_cfg=TEXT | dict(context_length=9, width=24, heads=3),
        init_logit_bias=-10.0,
    ),
    "custom-avg-quickgelu": dict(
        embed_dim=8,
        quick_gelu=True,
        custom_text=True,
        vision_cfg=VISION | dict(
            width=24, head_width=12, patch_size=5, image_size=10, no_ln_pre=True,
            pool_type="avg", final_ln_after_pool=True,
        ),
        text_cfg=TEXT | dict(no_causal_mask=True, pool_type="last"),
    ),
    "attentional-pool": dict(
        embed_dim=16,
        custom_text=True,
        vision_cfg=VISION | dict(
            width=24, attentional_pool=True, attn_pooler_queries=3, attn_pooler_heads=2,
            ls_init_value=0.1,
        ),
        text_cfg=TEXT | dict(
            pool_type="eos", eos_id=39, proj_type="none", ls_init_value=0.1,
            norm_kwargs=dict(eps=1e-3), act_kwargs=dict(approximate="tanh"),
        ),
    ),
    "attentional-pool-avg": dict(
        embed_dim=16,
        vision_cfg=VISION | dict(
            attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2, pool_type="avg",
            norm_kwargs=dict(eps=1e-3), act_kwargs=dict(approximate="tanh"),
        ),
        text_cfg=TEXT | dict(pool_type="first"),
    ),
    "clipa": dict(
        embed_dim=12,
        vision_cfg=VISION | dict(
            no_ln_pre=True, pool_type="avg", final_ln_after_pool=True, pos_embed_type="sin_cos_2d",
        ),
        text_cfg=TEXT | dict(no_causal_mask=True, pool_type="last"),
    ),
    "siglip": dict(
        embed_dim=16,
        init_logit_bias=-10,
        custom_text=True,
        vision_cfg=trunk("vit_base_patch16_siglip_224", timm_pool="map", timm_proj="none"),
        text_cfg=SIGLIP_TEXT,
    ),
    "siglip2": dict(
        embed_dim=16,
        init_logit_bias=-10,
        custom_text=True,
        vision_cfg=trunk("vit_giantopt_patch16_siglip_256", timm_pool="map", timm_proj="none"),
        text_cfg=SIGLIP_TEXT | dict(act_kwargs=dict(approximate="tanh")),
    ),
    "timm-vit-token": dict(
        embed_dim=12,
        vision_cfg=trunk("vit_base_patch16_224", timm_pool="token", timm_proj_bias=True),
        text_cfg=TEXT,
    ),
    "timm-vit-avg-mlp": dict(
        embed_dim=12,
        vision_cfg=trunk("vit_base_patch16_224", timm_pool="avg", timm_proj="mlp"),
        text_cfg=TEXT,
    ),
    "timm-vit-avg-classifier": dict(
        embed_dim=12,
        vision_cfg=trunk("vit_base_patch16_224", timm_pool="avg", timm_proj=""),
        text_cfg=TEXT,
    ),
    "resnet": dict(embed_dim=12, vision_cfg=RESNET, text_cfg=TEXT),
    "resnet-train": dict(embed_dim=12, quick_gelu=True, vision_cfg=RESNET, text_cfg=TEXT),
    "convnext": dict(embed_dim=12, vision_cfg=CONVNEXT, text_cfg=TEXT),
    "convnext-mlp": dict(embed_dim=12, vision_cfg=CONVNEXT | dict(timm_proj="mlp"), text_cfg=TEXT),
    "roberta-mean-mlp": dict(
        embed_dim=12,
        vision_cfg=VISION,
        text_cfg=dict(
            context_length=9, hf_model_name="roberta-base", hf_model_config=ROBERTA,
            hf_pooler_type="mean_pooler", hf_proj_type="mlp",
        ),
    ),
    "xlm-roberta-cls-linear": dict(
        embed_dim=12,
        vision_cfg=VISION,
        text_cfg=dict(
            context_length=9, hf_model_name="xlm-roberta-base",
            hf_model_config=ROBERTA | dict(model_type="xlm-roberta"),
            hf_pooler_type="cls_pooler", hf_proj_type="linear",
        ),
    ),
}


def save(path: pathlib.Path, tensors: dict, metadata: dict) -> None:
    """Writes safetensors: a header of JSON, then the data (no package needed)."""
    header, blobs, offset = {"__metadata__": metadata}, [], 0
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


def captions(text: dict) -> torch.Tensor:
    """Random ids of many lengths: an end token behind each, then padding."""
    length = text["context_length"]
    vocab_size = text.get("vocab_size") or text["hf_model_config"]["vocab_size"]
    pad = text["hf_model_config"]["pad_token_id"] if "hf_model_config" in text else 0
    tokens = torch.full((BATCH, length), pad, dtype=torch.long)
    for row in range(BATCH):
        end = 1 + (row * 3) % (length - 1)
        tokens[row, :end] = torch.randint(2, vocab_size - 1, (end,))
        tokens[row, end] = vocab_size - 1
    return tokens


def without(section: dict, *keys: str) -> dict:
    return {key: value for key, value in section.items() if key not in keys}


@contextlib.contextmanager
def shrunken_timm(vision: dict):
    """Makes timm build its towers with the sizes of `timm_model_kwargs`."""
    create = timm.create_model
    kwargs = dict(vision.get("timm_model_kwargs", {}))
    if vision.get("timm_model_name", "").startswith("vit_"):
        kwargs["img_size"] = vision["image_size"]
    with mock.patch.object(timm, "create_model", lambda *a, **k: create(*a, **(k | kwargs))):
        yield


def build(config: dict) -> torch.nn.Module:
    vision, text = config["vision_cfg"], config["text_cfg"]
    arguments = without(config, "custom_text")
    arguments["vision_cfg"] = without(vision, "timm_model_kwargs")
    if "hf_model_config" in text:
        arguments["text_cfg"] = TEXT
        model = CustomTextCLIP(**arguments)
        model.text = hugging_face(text, config["embed_dim"])
        return model
    with shrunken_timm(vision):
        return (CustomTextCLIP if config.get("custom_text") else CLIP)(**arguments)


def hugging_face(text: dict, embed_dim: int) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModel

    sizes = dict(text["hf_model_config"])
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    encoder = hf_model.HFTextEncoder(
        text["hf_model_name"], output_dim=embed_dim, config=config,
        pooler_type=text["hf_pooler_type"], proj_type=text["hf_proj_type"],
    )
    # By name OpenCLIP leaves the pooling layer out where nothing uses it.
    uses_pooler = text["hf_pooler_type"] == "cls_pooler"
    encoder.transformer = AutoModel.from_config(config, add_pooling_layer=uses_pooler)
    return encoder


def randomise(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 1 or parameter.abs().max() < 1e-4:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(buffer, mean=0.1, std=0.2)
        elif name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.5, 2.0)


def golden(name: str, config: dict, folder: pathlib.Path) -> None:
    torch.manual_seed(0)
    model = build(config)
    randomise(model)
    mode = "train" if name.endswith("-train") else "eval"
    model.train(mode == "train")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    size = config["vision_cfg"]["image_size"]
    images = torch.randn(BATCH, 3, size, size)
    tokens = captions(config["text_cfg"])
    image, text = model.encode_image(images), model.encode_text(tokens)
    weight_image, weight_text = torch.randn_like(image), torch.randn_like(text)
    ((image * weight_image).sum() + (text * weight_text).sum()).backward()
    tensors = dict(images=images, tokens=tokens, image=image, text=text)
    tensors |= dict(weight_image=weight_image, weight_text=weight_text)
    for key, tensor in before.items():
        tensors[f"param.{key}"] = tensor
        if mode == "train" and not torch.equal(tensor, model.state_dict()[key]):
            tensors[f"after.{key}"] = model.state_dict()[key]
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            tensors[f"grad.{key}"] = parameter.grad
    convolutional = "resnet" in name or "convnext" in name
    metadata = dict(
        config=json.dumps(config), mode=mode, tolerance="1e-4" if convolutional else "1e-5"
    )
    save(folder / f"model-{name}.safetensors", tensors, metadata)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    names = sys.argv[2:] or list(VARIANTS)
    for name in names:
        golden(name, VARIANTS[name], folder)


if __name__ == "__main__":
    main()
