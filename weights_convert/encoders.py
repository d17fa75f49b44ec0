"""Published image encoder (CLIP, DINOv2, DINOv3, SigLIP) → frozen encoder, or a refusal.

In: a Hugging Face folder with config.json, the tensors and, as a rule, preprocessor_config.json.
Sizes come from the tensors' shapes and are checked against the config; every tensor of the image
tower is used once, every parameter filled once; what is left out follows a named rule.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from flax import traverse_util

from cinemae_jax import __version__, weights
from cinemae_jax.model.config import CHANNELS
from cinemae_jax.model.layers import Activation
from cinemae_jax.model.quantised import Bits
from cinemae_jax.model.vit import first_blocks
from cinemae_jax.model.vit_config import Family, Preprocessing, Resampling, ViTConfig
from weights_convert import encoder_mapping, infer, preprocessing, sources
from weights_convert.convert import Converted, Filling, fill, shape_problems
from weights_convert.mapping import Row
from weights_convert.sources import ConversionError, Source

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "tanh_gelu",
}
FAMILIES: Mapping[str, Family] = {
    "clip": "clip",
    "siglip": "siglip",
    "siglip2": "siglip",
    "dinov2": "dinov2",
    "dinov3": "dinov3",
}
# By model type; bicubic for the others.
RESAMPLING: Mapping[str, Resampling] = {
    "dinov2_with_registers": "bicubic_antialias",
    "siglip2": "bilinear_antialias",
    "siglip2_vision_model": "bilinear_antialias",
}
_SIGLIP = {"num_attention_heads": 12, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
# What an entry that is absent from config.json means: transformers' default.
ABSENT: Mapping[str, Mapping[str, Any]] = {
    "clip": {"num_attention_heads": 12, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
    "siglip": {
        "num_attention_heads": 12,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "siglip2": {
        "num_attention_heads": 12,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "dinov2": {"num_attention_heads": 12, "layer_norm_eps": 1e-6, "hidden_act": "gelu"},
    "dinov3": {
        "num_attention_heads": 6,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "rope_theta": 100.0,
        "image_size": 224,
    },
}
# The same for num_register_tokens, by model type; 0 for the others.
REGISTERS: Mapping[str, int] = {"dinov2_with_registers": 4}
# Entries that ask for layers other than ours, unless they are absent or have this value.
MUST: Mapping[str, Mapping[str, Any]] = {
    "clip": {},
    "siglip": {"vision_use_head": True},
    "siglip2": {"vision_use_head": True},
    "dinov2": {"qkv_bias": True, "use_swiglu_ffn": False},
    "dinov3": {
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
        "use_gated_mlp": False,
    },
}

MISSING = {
    "visual_projection.weight": ": the feature of CLIP is its projected class token; save a "
    "CLIPVisionModelWithProjection, or use the whole CLIP checkpoint",
}


@dataclass(frozen=True)
class Plan:
    """What a conversion will write, decided before any tensor is read."""

    config: ViTConfig
    preprocessing: Preprocessing
    fillings: list[Filling]
    notes: list[str]


@dataclass(frozen=True)
class Tower:
    """The image tower of an opened source.

    Attributes:
      layout: of ``encoder_mapping``.
      entries: of config.json that describe it.
      names: of its tensors, published → in the file, without what a rule leaves out.
      rows: the table that should fill every parameter from them.
      left_out: rule → number of tensors that it leaves out.
    """

    layout: str
    entries: Mapping[str, Any]
    names: Mapping[str, str]
    rows: list[Row]
    left_out: Mapping[str, int]


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    blocks: int | None = None,
    bits: Bits | None = None,
) -> Converted:
    """Converts one published encoder.

    Args:
      source: folder with config.json and the tensors, or the file of the tensors in it.
      out: safetensors file to write; ``weights.load_encoder`` reads it.
      name: of the source in the header; by default the file's.
      blocks: how many to keep (``vit.first_blocks``); None keeps all, and the published feature.
      bits: of stored kernels; None stores float32.

    Raises:
      ConversionError: with all problems, if the source is refused; nothing is written then.
    """
    with sources.opened(Path(source), name, kinds=encoder_mapping.LAYOUTS) as opened:
        planned = plan(opened)
        params: Any = traverse_util.unflatten_dict(fill(opened, planned.fillings), sep="/")
        config = planned.config
        if blocks is not None:
            try:
                config, params = first_blocks(config, params, blocks)
            except ValueError as error:
                raise ConversionError(f"{opened.path}: {error}") from error
        origin = _origin(opened, planned) | _changes(planned.config, blocks, bits)
        fed = planned.preprocessing
        sha256 = weights.save_encoder(out, config, params, fed, origin, bits=bits)
    return Converted(Path(out), sha256, config, origin, tuple(planned.notes))


def _changes(config: ViTConfig, blocks: int | None, bits: Bits | None) -> dict[str, str]:
    """What the conversion changed on purpose, for people."""
    done = {}
    if blocks is not None:
        done["blocks"] = f"the first {blocks} of {config.depth}; feature: the class token there"
    if bits is not None:
        done["precision"] = f"kernels of blocks rounded to {bits} bits"
    return done


def plan(source: Source) -> Plan:
    """Architecture, preprocessing, every parameter with the tensors to fill it; reads no tensor.

    Raises:
      ConversionError: listing everything that does not fit.
    """
    tower = _tower(source)
    problems = [*_odd_entries(source, tower), *_name_problems(source, tower)]
    config, more = _architecture(source, tower)
    problems += more
    if config is not None:
        expected = weights.expected_shapes(config)
        problems += shape_problems(tower.rows, tower.names, source, "huggingface", expected)
    if problems or config is None:
        listed = "\n  - ".join(problems)
        raise ConversionError(f"{source.path} is refused:\n  - {listed}")
    found, note = preprocessing.read(
        source.path.parent, tower.layout, config.image_size, config.patch_size
    )
    notes = [f"{rule} left out ({count} tensors)" for rule, count in tower.left_out.items()]
    dtypes = {source.dtypes[name] for name in tower.names.values()}
    if dtypes != {"float32"}:
        notes.append(f"source tensors are {', '.join(sorted(dtypes))}; written as float32")
    fillings = [(row, [tower.names[n] for n in row.huggingface]) for row in tower.rows]
    return Plan(config, found, fillings, [*notes, note] if note else notes)


def _tower(source: Source) -> Tower:
    """The image tower that config.json announces; refuses at once if it is not there."""
    kind = source.config["model_type"]
    layout = encoder_mapping.LAYOUTS[kind]
    published = {n: encoder_mapping.published_name(n, layout) for n in source.shapes}
    rules = {n: encoder_mapping.skipped(p, layout) for n, p in published.items()}
    left_out = Counter(rule for rule in rules.values() if rule)
    kept = {p: n for n, p in published.items() if rules[n] is None}
    registers = source.shapes.get(kept.get("embeddings.register_tokens", ""), (0,))
    if 0 in registers and "embeddings.register_tokens" in kept:
        del kept["embeddings.register_tokens"]
        left_out["register table without rows"] = 1
    depth = encoder_mapping.depth(kept, layout)
    rows = encoder_mapping.rows(layout, depth, registers=0 not in registers)
    found = encoder_mapping.recognised(source.shapes)
    expected = "siglip" if layout == "siglip2" else layout
    if found not in (expected, None):
        raise ConversionError(
            f"{source.path}: config.json says {kind}, but the tensors are named as those of "
            f"{found}: put the config.json of the same repository beside them"
        )
    embedding = next(r for r in rows if r.target == "patch_embed/kernel").huggingface[0]
    if embedding not in kept:
        text = f" ({left_out['text tower']} tensors of a text tower)" * ("text tower" in left_out)
        raise ConversionError(
            f"{source.path} holds no image tower: {embedding} is not among its "
            f"{len(source.shapes)} tensors{text}. Use the whole {layout} checkpoint, or its image "
            "encoder"
        )
    return Tower(layout, _entries(source.config), kept, rows, left_out)


def _entries(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the image tower; two towers have a projection in common."""
    if "vision_config" not in config:
        return config
    common = {k: config[k] for k in ("projection_dim", "quantization_config") if k in config}
    vision = {k: v for k, v in (config["vision_config"] or {}).items() if k != "projection_dim"}
    return vision | common


def _odd_entries(source: Source, tower: Tower) -> list[str]:
    problems = [f"{name} is not a tensor" for name in source.strays]
    odd = [n for n in tower.names.values() if source.dtypes[n] not in sources.FLOATS]
    quantised = tower.entries.get("quantization_config")
    if odd or quantised:
        found = [f"{name} is {source.dtypes[name]}" for name in odd]
        found += ["config.json has a quantization_config"] if quantised else []
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        problems.append(
            f"quantised weights ({', '.join(found[:3])}{more}): use the float32, float16 or "
            "bfloat16 file of the same repository"
        )
    return problems


def _name_problems(source: Source, tower: Tower) -> list[str]:
    used = {n for row in tower.rows for n in row.huggingface}
    kept = set(tower.names.values())
    doubles = [
        n for n in source.shapes
        if n not in kept and encoder_mapping.published_name(n, tower.layout) in tower.names
    ]  # fmt: skip
    problems = [f"{n} is there twice, by two releases' names" for n in doubles]
    problems += [f"{n} is missing{MISSING.get(n, '')}" for n in sorted(used - tower.names.keys())]
    return problems + [
        f"{name} has no place in a {tower.layout} encoder of {len(tower.rows)} parameters"
        for published, name in tower.names.items()
        if published not in used
    ]


def _architecture(source: Source, tower: Tower) -> tuple[ViTConfig | None, list[str]]:
    """The architecture, or None, and what config.json contradicts or asks for in vain."""
    entries = {**ABSENT[tower.layout], **tower.entries}
    problems = _unsupported(tower.layout, entries)
    try:
        sizes = _sizes(source, tower, entries)
        config = ViTConfig(
            family=FAMILIES[tower.layout],
            num_heads=int(entries["num_attention_heads"]),
            layer_norm_eps=float(entries["layer_norm_eps"]),
            activation=ACTIVATIONS.get(entries["hidden_act"], "gelu"),
            resampling=RESAMPLING.get(source.config["model_type"], "bicubic"),
            rope_theta=float(entries.get("rope_theta", 100.0)),
            **sizes,
        )
    except KeyError as error:
        return None, [*problems, f"without {error.args[0]} the sizes of the encoder are unknown"]
    except (TypeError, ValueError) as error:
        return None, [*problems, f"no architecture fits: {error}"]
    return config, problems + _contradictions(source.config["model_type"], entries, config)


def _unsupported(layout: str, entries: Mapping[str, Any]) -> list[str]:
    """Entries that ask for layers which ``ViT`` does not have."""
    supported: dict[str, tuple[Any, ...]] = {k: (v,) for k, v in MUST[layout].items()}
    supported |= {"num_channels": (CHANNELS,), "hidden_act": tuple(ACTIVATIONS)}
    return [
        f"config.json says {name} {entries[name]!r}; supported: {', '.join(map(repr, values))}"
        for name, values in supported.items()
        if name in entries and entries[name] not in values
    ]


def _sizes(source: Source, tower: Tower, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of ``ViTConfig``, from shapes.

    Raises:
      KeyError: naming a tensor that is needed and not there.
      ValueError: if a shape makes no sense.
    """

    def shape(target: str) -> tuple[int, ...]:
        name = next((r.huggingface[0] for r in tower.rows if r.target == target), target)
        return source.shapes[tower.names[name]]

    kernel, family = shape("patch_embed/kernel"), FAMILIES[tower.layout]
    flat = tower.layout == "siglip2"
    patch = isqrt(kernel[1] // CHANNELS) if flat and len(kernel) == 2 else kernel[-1]
    if kernel[1:] not in ((CHANNELS, patch, patch), (CHANNELS * patch**2,)):
        raise ValueError(f"patch embedding {kernel} is not of squares with {CHANNELS} channels")
    if family == "dinov3":
        image = int(infer.one_side(entries["image_size"]))
    else:
        positions = shape("pos_embed")[-2] - (family != "siglip")
        if isqrt(positions) ** 2 != positions:
            raise ValueError(f"{positions} positions of patches are not those of a square image")
        image = isqrt(positions) * patch
    has_registers = any(row.target == "registers" for row in tower.rows)
    return {
        "image_size": image,
        "patch_size": patch,
        "width": kernel[0],
        "depth": encoder_mapping.depth(tower.names, tower.layout),
        "mlp_width": shape("block_0/fc1/kernel")[0],
        "projection": shape("projection/kernel")[0] if family == "clip" else 0,
        "num_registers": shape("registers")[-2] if has_registers else 0,
    }


def _contradictions(kind: str, entries: Mapping[str, Any], config: ViTConfig) -> list[str]:
    """Where config.json speaks of sizes that the tensors do not have."""
    patch, stated = config.patch_size, infer.one_side(entries.get("image_size", 0))
    if isinstance(stated, int) and stated % patch:
        return [
            f"config.json says image_size {stated}, which patches of {patch} do not divide: use a "
            f"checkpoint for whole patches, for example of {stated // patch * patch} pixels"
        ]
    sizes: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "intermediate_size": config.mlp_width,
        "mlp_ratio": config.mlp_width / config.width,
        "image_size": config.image_size,
        "patch_size": patch,
        "num_patches": config.grid**2,
        "num_register_tokens": config.num_registers,
    }
    if config.family == "clip":
        sizes["projection_dim"] = config.projection
    says: dict[str, Any] = {"num_register_tokens": REGISTERS.get(kind, 0), **entries}
    return [
        f"config.json says {name} {says[name]!r}, the tensors {value!r}"
        for name, value in sizes.items()
        if name in says and infer.one_side(says[name]) != value
    ]


def _origin(source: Source, planned: Plan) -> dict[str, str]:
    return {
        "source": source.name,
        "source_sha256": weights.file_sha256(source.path),
        "family": planned.config.family,
        "architecture": ", ".join(f"{k} {v}" for k, v in asdict(planned.config).items()),
        "preprocessing": ", ".join(f"{k} {v}" for k, v in asdict(planned.preprocessing).items()),
        "source_dtypes": ", ".join(sorted(set(source.dtypes.values()))),
        "converter": f"weights_convert {__version__}",
        "licence": source.licence,
        "notes": "; ".join(planned.notes),
    }
