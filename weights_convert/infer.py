"""What a published MAE file is: sizes from its tensors' shapes, the rest from config or user.

Whatever stays open, or contradicts something else, is added to a list of problems; nothing is
guessed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cinemae_jax.model.config import CHANNELS, MAEConfig, Target
from weights_convert import mapping
from weights_convert.sources import Source

# Heads of the official encoders by width; shapes cannot tell.
ENCODER_HEADS = {768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}
MAX_EPS = 1e-2
FACEBOOK_EPS = 1e-6  # LayerNorm's in facebookresearch/mae; its files do not say
_PLACEHOLDERS = {"num_heads": 1, "decoder_num_heads": 1, "target": "raw", "layer_norm_eps": 1e-6}
_WHY_TARGET = (
    "whether the decoder predicts raw or per-patch-normalised pixels cannot be seen from the "
    "weights, and the wrong answer makes every reconstruction error meaningless without any other "
    "symptom: say --target raw (mae_visualize_*) or --target norm_pix (mae_pretrain_*_full)"
)


@dataclass(frozen=True)
class Options:
    """What the user says; None where the source must know.

    Attributes:
      target: what the decoder predicts.
      encoder_only: accept a file without a decoder, for K = 0 runs.
      num_heads, decoder_num_heads: for sizes that are not official and have no config.json.
      layer_norm_eps: for files whose config does not say.
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
    problems: list[str],
) -> MAEConfig | None:
    """The architecture; appends to ``problems`` what shapes, config and user do not settle.

    What is unsettled but no size has a placeholder, so that shapes can be checked all the same.
    """
    by_target = {
        row.target: source.shapes[names[row.sources(layout)[0]]]
        for row in mapping.rows(*depths)
        if row.sources(layout)[0] in names
    }
    fields = _sizes(by_target, depths, problems)
    fields |= _heads(source, options, fields, problems)
    fields["target"] = _target(source, options, problems) if depths[1] else "raw"
    fields["layer_norm_eps"] = _layer_norm_eps(source, options, layout, problems)
    problems += _config_problems(source.config, fields)
    unsettled = {name for name, value in fields.items() if value is None}
    if unsettled - _PLACEHOLDERS.keys():
        return None
    try:
        return MAEConfig(**fields | {name: _PLACEHOLDERS[name] for name in unsettled})
    except (TypeError, ValueError) as error:
        problems.append(f"no architecture fits: {error}")
        return None


def _sizes(
    shapes: Mapping[str, tuple[int, ...]], depths: tuple[int, int], problems: list[str]
) -> dict[str, Any]:
    kernel = shapes["patch_embed/kernel"]
    positions = shapes.get("pos_embed", ())
    size: dict[str, Any] = {"depth": depths[0], "decoder_depth": depths[1]}
    if len(kernel) != 4 or kernel[2] != kernel[3] or kernel[1] != CHANNELS:
        problems.append(f"patch embedding {kernel} is not (width, {CHANNELS}, side, side)")
        return size | {"image_size": None, "patch_size": None, "width": None}
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
    return size


def _heads(
    source: Source, options: Options, fields: Mapping[str, Any], problems: list[str]
) -> dict[str, int | None]:
    heads: dict[str, int | None] = {}
    for prefix, official in (("", ENCODER_HEADS), ("decoder_", DECODER_HEADS)):
        if prefix and not fields["decoder_depth"]:
            continue
        width = fields.get(f"{prefix}width")
        stated = source.config.get(f"{prefix}num_attention_heads")
        said = getattr(options, f"{prefix}num_heads")
        flag = f"--{prefix}num-heads".replace("_", "-")
        if stated is not None and said is not None and stated != said:
            problems.append(f"config.json says {stated} {prefix}heads, {flag} says {said}")
        known = official.get(width) if width else None
        number = stated if stated is not None else said if said is not None else known
        if number is not None and not (isinstance(number, int) and number > 0):
            problems.append(f"{number!r} is no number of {prefix or 'encoder '}heads")
            number = None
        elif number is None and width:
            problems.append(
                f"the number of heads of a {prefix or 'encoder '}width of {width} cannot be seen "
                f"from the weights: say {flag} N, or put config.json beside the file"
            )
        heads[f"{prefix}num_heads"] = number
    return heads


def _target(source: Source, options: Options, problems: list[str]) -> Target | None:
    """Raw or per-patch-normalised; all that say something must say the same."""
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
        problems.append(f"the target is contradictory: {listed}. {_WHY_TARGET}")
        return None
    if not says:
        problems.append(_WHY_TARGET)
        return None
    return next(iter(says.values()))


def _layer_norm_eps(
    source: Source, options: Options, layout: mapping.Layout, problems: list[str]
) -> float | None:
    stated = source.config.get("layer_norm_eps")
    said = options.layer_norm_eps
    if stated is not None and said is not None and stated != said:
        problems.append(f"config.json says layer_norm_eps {stated}, --layer-norm-eps says {said}")
    eps = stated if stated is not None else said
    if eps is None and layout == "facebook":
        eps = FACEBOOK_EPS
    if eps is None:
        problems.append(
            "LayerNorm's epsilon is not stated: put config.json beside the file, or say "
            "--layer-norm-eps (1e-12 in Hugging Face's configs, 1e-6 in the original code)"
        )
    elif not (isinstance(eps, float) and 0 < eps < MAX_EPS):
        problems.append(f"LayerNorm's epsilon {eps!r} is no number between 0 and {MAX_EPS}")
        return None
    return eps


def _config_problems(config: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
    """Where config.json contradicts the tensors, or asks for a layer that ours are not."""
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
        f"config.json says {name} {config[name]!r}, the tensors {value!r}"
        for name, value in must.items()
        if name in config and value is not None and one_side(config[name]) != value
    ]


def one_side(entry: Any) -> Any:
    """transformers allows [224, 224] for a square of 224."""
    is_square = isinstance(entry, list) and len(entry) == 2 and entry[0] == entry[1]
    return entry[0] if is_square else entry
