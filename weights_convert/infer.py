"""The architecture of a published MAE file: sizes from tensor shapes, the rest from config or user.

Nothing is guessed: whatever is missing or contradictory becomes a problem, and all problems are
returned together.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cinemae_jax.model.config import CHANNELS, MAEConfig, Target
from weights_convert import mapping
from weights_convert.sources import Source

# Heads of the official models by width; shapes do not show them.
ENCODER_HEADS = {768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}
MAX_EPS = 1e-2
FACEBOOK_EPS = 1e-6  # LayerNorm's in facebookresearch/mae; its files do not state it
_PLACEHOLDERS = {"num_heads": 1, "decoder_num_heads": 1, "target": "raw", "layer_norm_eps": 1e-6}
_WHY_TARGET = (
    "the weights do not show whether the decoder predicts raw or per-patch-normalised pixels, and "
    "the wrong choice spoils every reconstruction error without any other symptom: pass "
    "--target raw (mae_visualize_*) or --target norm_pix (mae_pretrain_*_full)"
)


@dataclass(frozen=True)
class Options:
    """What the user states; None leaves it to the source.

    Attributes:
      target: what the decoder predicts.
      encoder_only: accept a file without a decoder, for detectors with K = 0.
      num_heads, decoder_num_heads: for sizes that are not official and have no config.json.
      layer_norm_eps: for files that do not state it.
    """

    target: Target | None = None
    encoder_only: bool = False
    num_heads: int | None = None
    decoder_num_heads: int | None = None
    layer_norm_eps: float | None = None


def architecture(
    source: Source,
    options: Options,
    names: Mapping[str, str],
    layout: mapping.Layout,
    depths: tuple[int, int],
) -> tuple[MAEConfig | None, list[str]]:
    """The architecture, and what shapes, config and user leave open or contradict.

    If a size is open, the architecture is None.  Other open fields get a placeholder, so that the
    shapes can be checked in the same run.

    Args:
      source: opened.
      options: of the user.
      names: published name → name in the file.
      layout: of the names.
      depths: blocks of encoder and decoder.
    """
    by_target = {
        row.target: source.shapes[names[row.sources(layout)[0]]]
        for row in mapping.rows(*depths)
        if row.sources(layout)[0] in names
    }
    fields, of_sizes = _sizes(by_target, depths)
    heads, of_heads = _heads(source, options, fields)
    target, of_target = _target(source, options) if depths[1] else ("raw", [])
    eps, of_eps = _layer_norm_eps(source, options, layout)
    fields |= heads | {"target": target, "layer_norm_eps": eps}
    problems = [*of_sizes, *of_heads, *of_target, *of_eps, *_config_problems(source.config, fields)]
    unsettled = {name for name, value in fields.items() if value is None}
    if unsettled - _PLACEHOLDERS.keys():
        return None, problems
    try:
        return MAEConfig(**fields | {name: _PLACEHOLDERS[name] for name in unsettled}), problems
    except (TypeError, ValueError) as error:
        return None, [*problems, f"no architecture fits: {error}"]


def _sizes(
    shapes: Mapping[str, tuple[int, ...]], depths: tuple[int, int]
) -> tuple[dict[str, Any], list[str]]:
    kernel = shapes["patch_embed/kernel"]
    positions = shapes.get("pos_embed", ())
    size: dict[str, Any] = {"depth": depths[0], "decoder_depth": depths[1]}
    if len(kernel) != 4 or kernel[2] != kernel[3] or kernel[1] != CHANNELS:
        size |= {"image_size": None, "patch_size": None, "width": None}
        return size, [f"patch embedding {kernel} is not (width, {CHANNELS}, side, side)"]
    problems = []
    size |= {"width": kernel[0], "patch_size": kernel[2], "image_size": None}
    grid = round(max(positions[1] - 1, 0) ** 0.5) if len(positions) == 3 else 0
    if grid and grid**2 == positions[1] - 1:
        size["image_size"] = grid * kernel[2]
    else:
        problems.append(f"position table {positions} is not (1, 1 + side², width)")
    if depths[1]:
        size["decoder_width"] = (shapes.get("mask_token") or (None,))[-1]
        if size["decoder_width"] is None:
            problems.append("the decoder's width is unknown without its mask token")
    return size, problems


def _heads(
    source: Source, options: Options, fields: Mapping[str, Any]
) -> tuple[dict[str, int | None], list[str]]:
    heads: dict[str, int | None] = {}
    problems = []
    for prefix, official in (("", ENCODER_HEADS), ("decoder_", DECODER_HEADS)):
        if prefix and not fields["decoder_depth"]:
            continue
        part = "decoder" if prefix else "encoder"
        width = fields.get(f"{prefix}width")
        stated = source.config.get(f"{prefix}num_attention_heads")
        passed = getattr(options, f"{prefix}num_heads")
        flag = f"--{prefix}num-heads".replace("_", "-")
        if stated is not None and passed is not None and stated != passed:
            problems.append(f"{part} heads: config.json says {stated}, {flag} says {passed}")
        known = official.get(width) if width else None
        number = stated if stated is not None else passed if passed is not None else known
        if number is not None and not (isinstance(number, int) and number > 0):
            problems.append(f"{part} heads must be an integer of 1 or more, not {number!r}")
            number = None
        elif number is None and width:
            problems.append(
                f"the weights do not show the number of heads of the {part} of width {width}: pass "
                f"{flag} N, or put config.json beside the file"
            )
        heads[f"{prefix}num_heads"] = number
    return heads, problems


def _target(source: Source, options: Options) -> tuple[Target | None, list[str]]:
    """Raw or per-patch-normalised; every place that states it must agree."""
    says: dict[str, Target] = {}
    for place, entry in (
        ("config.json", source.config.get("norm_pix_loss")),
        ("the training run's args", source.args.get("norm_pix_loss")),
    ):
        if isinstance(entry, bool):
            says[place] = "norm_pix" if entry else "raw"
    if re.match(r"mae_visualize_vit_", source.path.name):
        says["the file's name"] = "raw"
    elif re.match(r"mae_pretrain_vit_\w+_full", source.path.name):
        says["the file's name"] = "norm_pix"
    if options.target:
        says["--target"] = options.target
    if len(set(says.values())) > 1:
        listed = ", ".join(f"{place} says {target}" for place, target in says.items())
        return None, [f"the target is contradictory: {listed}; {_WHY_TARGET}"]
    return next(iter(says.values()), None), [] if says else [_WHY_TARGET]


def _layer_norm_eps(
    source: Source, options: Options, layout: mapping.Layout
) -> tuple[float | None, list[str]]:
    stated, passed = source.config.get("layer_norm_eps"), options.layer_norm_eps
    problems = []
    if stated is not None and passed is not None and stated != passed:
        problems.append(f"config.json says layer_norm_eps {stated}, --layer-norm-eps says {passed}")
    eps = stated if stated is not None else passed
    if eps is None and layout == "facebook":
        eps = FACEBOOK_EPS
    if eps is None:
        problems.append(
            "LayerNorm's epsilon is not stated: put config.json beside the file, or pass "
            "--layer-norm-eps (1e-12 in Hugging Face's configs, 1e-6 in the original code)"
        )
    elif not (isinstance(eps, float) and 0 < eps < MAX_EPS):
        problems.append(f"LayerNorm's epsilon must lie between 0 and {MAX_EPS}, not {eps!r}")
        eps = None
    return eps, problems


def _config_problems(config: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
    """Entries of config.json that contradict the tensors, or ask for layers this package lacks."""
    width, decoder_width = fields.get("width"), fields.get("decoder_width")
    must: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": fields["depth"],
        "intermediate_size": 4 * width if width else None,
        "image_size": fields["image_size"],
        "patch_size": fields["patch_size"],
        "num_channels": CHANNELS,
        "hidden_act": "gelu",  # the exact one; gelu_new and quick_gelu are others
        "qkv_bias": True,
    }
    if fields["decoder_depth"]:
        must |= {
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": fields["decoder_depth"],
            "decoder_intermediate_size": 4 * decoder_width if decoder_width else None,
        }
    return [
        f"config.json says {name} {config[name]!r}, expected {value!r}"
        for name, value in must.items()
        if name in config and value is not None and one_side(config[name]) != value
    ]


def one_side(entry: Any) -> Any:
    """224 for [224, 224], which transformers allows; anything else as it is."""
    is_square = isinstance(entry, list) and len(entry) == 2 and entry[0] == entry[1]
    return entry[0] if is_square else entry
