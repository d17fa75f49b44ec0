"""Which tensor of a published CLIP, DINOv2, DINOv3 or SigLIP becomes which parameter of ``ViT``.

One table per layout of names, read by eye, as Hugging Face publishes them; rules for tensors that
an image encoder does not need; spellings of other releases.  Needs neither torch nor JAX.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from weights_convert.mapping import Row


def _norm(target: str, source: str) -> tuple[Row, ...]:
    return (
        Row(f"{target}/scale", "", (f"{source}.weight",)),
        Row(f"{target}/bias", "", (f"{source}.bias",)),
    )


def _linear(target: str, *sources: str) -> tuple[Row, ...]:
    return (
        Row(f"{target}/kernel", "", tuple(f"{s}.weight" for s in sources), "linear"),
        Row(f"{target}/bias", "", tuple(f"{s}.bias" for s in sources)),
    )


# fmt: off
_CLIP_LAYER, _DINOV2_LAYER, _DINOV3_LAYER = "vision_model.encoder.layers.{i}", "encoder.layer.{i}", "layer.{i}"  # noqa: E501
_CLIP_BLOCK = (
    *_norm("block_{i}/norm1", f"{_CLIP_LAYER}.layer_norm1"),
    *_linear("block_{i}/attn/qkv", *(f"{_CLIP_LAYER}.self_attn.{name}_proj" for name in "qkv")),
    *_linear("block_{i}/attn/out", f"{_CLIP_LAYER}.self_attn.out_proj"),
    *_norm("block_{i}/norm2", f"{_CLIP_LAYER}.layer_norm2"),
    *_linear("block_{i}/fc1", f"{_CLIP_LAYER}.mlp.fc1"),
    *_linear("block_{i}/fc2", f"{_CLIP_LAYER}.mlp.fc2"),
)
_CLIP = (
    Row("cls_token",          "", ("vision_model.embeddings.class_embedding",), "tokens"),
    Row("pos_embed",          "", ("vision_model.embeddings.position_embedding.weight",)),
    Row("patch_embed/kernel", "", ("vision_model.embeddings.patch_embedding.weight",), "conv"),
    *_norm("pre_norm", "vision_model.pre_layrnorm"),  # sic
    *_CLIP_BLOCK,
    *_norm("norm", "vision_model.post_layernorm"),
    Row("projection/kernel",  "", ("visual_projection.weight",), "linear"),
)
_SIGLIP = (
    Row("pos_embed",          "", ("vision_model.embeddings.position_embedding.weight",)),
    Row("patch_embed/kernel", "", ("vision_model.embeddings.patch_embedding.weight",), "conv"),
    Row("patch_embed/bias",   "", ("vision_model.embeddings.patch_embedding.bias",)),
    *_CLIP_BLOCK,
    *_norm("norm", "vision_model.post_layernorm"),
    Row("pool/probe",         "", ("vision_model.head.probe",), "tokens"),
    Row("pool/qkv_kernel",    "", ("vision_model.head.attention.in_proj_weight",), "linear"),
    Row("pool/qkv_bias",      "", ("vision_model.head.attention.in_proj_bias",)),
    *_linear("pool/out", "vision_model.head.attention.out_proj"),
    *_norm("pool/norm", "vision_model.head.layernorm"),
    *_linear("pool/fc1", "vision_model.head.mlp.fc1"),
    *_linear("pool/fc2", "vision_model.head.mlp.fc2"),
)
_DINOV2 = (
    Row("cls_token",          "", ("embeddings.cls_token",), "tokens"),
    Row("registers",          "", ("embeddings.register_tokens",), "tokens"),
    Row("pos_embed",          "", ("embeddings.position_embeddings",), "tokens"),
    Row("patch_embed/kernel", "", ("embeddings.patch_embeddings.projection.weight",), "conv"),
    Row("patch_embed/bias",   "", ("embeddings.patch_embeddings.projection.bias",)),
    *_norm("block_{i}/norm1", f"{_DINOV2_LAYER}.norm1"),
    *_linear("block_{i}/attn/qkv", *(f"{_DINOV2_LAYER}.attention.attention.{name}" for name in ("query", "key", "value"))),  # noqa: E501
    *_linear("block_{i}/attn/out", f"{_DINOV2_LAYER}.attention.output.dense"),
    Row("block_{i}/scale1",   "", (f"{_DINOV2_LAYER}.layer_scale1.lambda1",)),
    *_norm("block_{i}/norm2", f"{_DINOV2_LAYER}.norm2"),
    *_linear("block_{i}/fc1", f"{_DINOV2_LAYER}.mlp.fc1"),
    *_linear("block_{i}/fc2", f"{_DINOV2_LAYER}.mlp.fc2"),
    Row("block_{i}/scale2",   "", (f"{_DINOV2_LAYER}.layer_scale2.lambda1",)),
    *_norm("norm", "layernorm"),
)
_DINOV3 = (
    Row("cls_token",          "", ("embeddings.cls_token",), "tokens"),
    Row("registers",          "", ("embeddings.register_tokens",), "tokens"),
    Row("patch_embed/kernel", "", ("embeddings.patch_embeddings.weight",), "conv"),
    Row("patch_embed/bias",   "", ("embeddings.patch_embeddings.bias",)),
    *_norm("block_{i}/norm1", f"{_DINOV3_LAYER}.norm1"),
    Row("block_{i}/attn/qkv/kernel", "", tuple(f"{_DINOV3_LAYER}.attention.{name}_proj.weight" for name in "qkv"), "linear"),  # noqa: E501
    Row("block_{i}/attn/qkv/bias", "", tuple(f"{_DINOV3_LAYER}.attention.{name}_proj.bias" for name in "qv"), "keyless"),  # noqa: E501
    *_linear("block_{i}/attn/out", f"{_DINOV3_LAYER}.attention.o_proj"),
    Row("block_{i}/scale1",   "", (f"{_DINOV3_LAYER}.layer_scale1.lambda1",)),
    *_norm("block_{i}/norm2", f"{_DINOV3_LAYER}.norm2"),
    *_linear("block_{i}/fc1", f"{_DINOV3_LAYER}.mlp.up_proj"),
    *_linear("block_{i}/fc2", f"{_DINOV3_LAYER}.mlp.down_proj"),
    Row("block_{i}/scale2",   "", (f"{_DINOV3_LAYER}.layer_scale2.lambda1",)),
    *_norm("norm", "norm"),
)

# naflex cuts its images itself and embeds the patches, ordered (p, q, c), by a linear layer.
_SIGLIP2 = tuple(
    replace(row, transform="linear") if row.transform == "conv" else row for row in _SIGLIP
)

TABLES: Mapping[str, tuple[Row, ...]] = {
    "clip": _CLIP, "siglip": _SIGLIP, "siglip2": _SIGLIP2, "dinov2": _DINOV2, "dinov3": _DINOV3,
}
# config.json's model_type: the layout of the names, and of the config.
LAYOUTS: Mapping[str, str] = {
    "clip": "clip", "clip_vision_model": "clip",
    "siglip": "siglip", "siglip_vision_model": "siglip",
    "siglip2": "siglip2", "siglip2_vision_model": "siglip2",
    "dinov2": "dinov2", "dinov2_with_registers": "dinov2",
    "dinov3_vit": "dinov3",
}
# By which an image tower is recognised.
SIGNS: Mapping[str, str] = {
    "clip": "vision_model.embeddings.class_embedding",
    "siglip": "vision_model.head.probe",
    "dinov2": "encoder.layer.0.layer_scale1.lambda1",
    "dinov3": "layer.0.layer_scale1.lambda1",
}
_TWO_TOWERS = (
    ("text tower", r"text_model\.|text_projection\."),
    ("scale of image-text similarity", r"logit_(scale|bias)$"),
    ("position numbers", r"vision_model\.embeddings\.position_ids$"),
)
_PRE_TRAINING = (("mask token of pre-training", r"embeddings\.mask_token$"),)
# What a checkpoint may hold besides: rule, pattern of names.  Nothing else is left out.
SKIPPED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "clip": _TWO_TOWERS, "siglip": _TWO_TOWERS, "siglip2": _TWO_TOWERS,
    "dinov2": _PRE_TRAINING, "dinov3": _PRE_TRAINING,
}
_TOWER_ALONE = (  # transformers 5 saves a tower by itself without this prefix
    (r"^(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.", r"vision_model.\1."),
)
_SPELLINGS: Mapping[str, tuple[tuple[str, str], ...]] = {  # pattern, published spelling
    "clip": _TOWER_ALONE, "siglip": _TOWER_ALONE, "siglip2": _TOWER_ALONE,
    "dinov2": (  # state_dict() of transformers 5
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
    ),
    "dinov3": ((r"^model\.layer\.", "layer."),),  # likewise
}
# fmt: on


def published_name(name: str, layout: str) -> str:
    """A tensor's name as the table spells it, whichever release of transformers wrote it."""
    for pattern, spelling in _SPELLINGS[layout]:
        name = re.sub(pattern, spelling, name)
    return name


def recognised(names: Iterable[str]) -> str | None:
    """The layout whose image tower is among the names (``siglip`` for both); None if none is."""
    names = set(names)
    for layout, sign in SIGNS.items():
        if sign in {published_name(n, layout) for n in names}:
            return layout
    return None


def skipped(name: str, layout: str) -> str | None:
    """The rule by which a tensor of this published name is left out; None if it is not."""
    return next((rule for rule, pattern in SKIPPED[layout] if re.match(pattern, name)), None)


def depth(names: Iterable[str], layout: str) -> int:
    """Number of blocks, counted to the highest number, so that a hole shows up as missing."""
    row = next(row for row in TABLES[layout] if "{i}" in row.target)
    pattern = re.compile(re.escape(row.huggingface[0].split("{i}")[0]) + r"(\d+)\.")
    return max((int(m[1]) + 1 for m in map(pattern.match, names) if m), default=0)


def rows(layout: str, depth: int, *, registers: bool) -> list[Row]:
    """The table of a layout with its blocks written out."""
    table = [row for row in TABLES[layout] if registers or row.target != "registers"]
    return [row.at(i) for row in table for i in (range(depth) if "{i}" in row.target else range(1))]
