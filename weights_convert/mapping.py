"""The table from tensors of published MAE files to parameters of this package.

In: names and arrays of a facebookresearch/mae (and timm) or Hugging Face ViTMAE file.  Out: Flax
paths joined by '/', and arrays in Flax's layout.  Needs neither torch nor JAX.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Layout = Literal["facebook", "huggingface"]
Part = Literal["encoder", "decoder"]


def _conv(kernel: np.ndarray) -> np.ndarray:
    """(O, I, H, W) of torch to (H·W·I, O): a patch's values are ordered (p, q, c)."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def _keyless(bias: np.ndarray) -> np.ndarray:
    """Biases of queries and values, joined, to those of queries, keys (zero) and values."""
    query, value = np.split(bias, 2)
    return np.concatenate([query, np.zeros_like(query), value])


TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda a: a,
    "linear": lambda a: a.T,  # torch (out, in), Flax (in, out)
    "conv": _conv,
    "tokens": lambda a: a.reshape(-1, *a.shape[-1:]),  # (w,), (1, n, w) to (n, w)
    "keyless": _keyless,
}
_RANK = {"linear": 2, "conv": 4}


@dataclass(frozen=True)
class Row:
    """One parameter; where names contain ``{i}``, one per block.

    Attributes:
      target: Flax path.
      facebook: name in facebookresearch/mae's files, and in timm's for the encoder; empty for what
        is not an MAE (``encoder_mapping``).
      huggingface: names in published files; several are joined along their first axis.
      transform: of the (joined) source array, a key of ``TRANSFORMS``.
    """

    target: str
    facebook: str
    huggingface: tuple[str, ...]
    transform: str = "same"

    @property
    def part(self) -> Part:
        is_decoder = self.target.startswith("decoder") or self.target == "mask_token"
        return "decoder" if is_decoder else "encoder"

    def sources(self, layout: Layout) -> tuple[str, ...]:
        return (self.facebook,) if layout == "facebook" else self.huggingface

    def at(self, i: int) -> "Row":
        """This row for block ``i``."""
        names = tuple(n.format(i=i) for n in self.huggingface)
        return Row(self.target.format(i=i), self.facebook.format(i=i), names, self.transform)


def _block_rows(target: str, facebook: str, huggingface: str) -> tuple[Row, ...]:
    t, f, h = target, facebook, huggingface
    split = [f"{h}.attention.attention.{name}" for name in ("query", "key", "value")]
    qkv_weight, qkv_bias = (tuple(f"{s}.{end}" for s in split) for end in ("weight", "bias"))
    # fmt: off
    return (
        Row(f"{t}/norm1/scale",     f"{f}.norm1.weight",     (f"{h}.layernorm_before.weight",)),
        Row(f"{t}/norm1/bias",      f"{f}.norm1.bias",       (f"{h}.layernorm_before.bias",)),
        Row(f"{t}/attn/qkv/kernel", f"{f}.attn.qkv.weight",  qkv_weight, "linear"),
        Row(f"{t}/attn/qkv/bias",   f"{f}.attn.qkv.bias",    qkv_bias),
        Row(f"{t}/attn/out/kernel", f"{f}.attn.proj.weight", (f"{h}.attention.output.dense.weight",), "linear"),  # noqa: E501
        Row(f"{t}/attn/out/bias",   f"{f}.attn.proj.bias",   (f"{h}.attention.output.dense.bias",)),
        Row(f"{t}/norm2/scale",     f"{f}.norm2.weight",     (f"{h}.layernorm_after.weight",)),
        Row(f"{t}/norm2/bias",      f"{f}.norm2.bias",       (f"{h}.layernorm_after.bias",)),
        Row(f"{t}/fc1/kernel",      f"{f}.mlp.fc1.weight",   (f"{h}.intermediate.dense.weight",), "linear"),  # noqa: E501
        Row(f"{t}/fc1/bias",        f"{f}.mlp.fc1.bias",     (f"{h}.intermediate.dense.bias",)),
        Row(f"{t}/fc2/kernel",      f"{f}.mlp.fc2.weight",   (f"{h}.output.dense.weight",), "linear"),  # noqa: E501
        Row(f"{t}/fc2/bias",        f"{f}.mlp.fc2.bias",     (f"{h}.output.dense.bias",)),
    )
    # fmt: on


# fmt: off
ENCODER_BLOCK = _block_rows("encoder_{i}", "blocks.{i}", "vit.encoder.layer.{i}")
DECODER_BLOCK = _block_rows("decoder_{i}", "decoder_blocks.{i}", "decoder.decoder_layers.{i}")
TABLE: tuple[Row, ...] = (
    Row("cls_token",            "cls_token",               ("vit.embeddings.cls_token",)),
    Row("pos_embed",            "pos_embed",               ("vit.embeddings.position_embeddings",)),
    Row("patch_embed/kernel",   "patch_embed.proj.weight", ("vit.embeddings.patch_embeddings.projection.weight",), "conv"),  # noqa: E501
    Row("patch_embed/bias",     "patch_embed.proj.bias",   ("vit.embeddings.patch_embeddings.projection.bias",)),  # noqa: E501
    *ENCODER_BLOCK,
    Row("encoder_norm/scale",   "norm.weight",             ("vit.layernorm.weight",)),
    Row("encoder_norm/bias",    "norm.bias",               ("vit.layernorm.bias",)),
    Row("decoder_embed/kernel", "decoder_embed.weight",    ("decoder.decoder_embed.weight",), "linear"),  # noqa: E501
    Row("decoder_embed/bias",   "decoder_embed.bias",      ("decoder.decoder_embed.bias",)),
    Row("mask_token",           "mask_token",              ("decoder.mask_token",)),
    Row("decoder_pos_embed",    "decoder_pos_embed",       ("decoder.decoder_pos_embed",)),
    *DECODER_BLOCK,
    Row("decoder_norm/scale",   "decoder_norm.weight",     ("decoder.decoder_norm.weight",)),
    Row("decoder_norm/bias",    "decoder_norm.bias",       ("decoder.decoder_norm.bias",)),
    Row("decoder_pred/kernel",  "decoder_pred.weight",     ("decoder.decoder_pred.weight",), "linear"),  # noqa: E501
    Row("decoder_pred/bias",    "decoder_pred.bias",       ("decoder.decoder_pred.bias",)),
)

HEAD_TABLE: tuple[tuple[str, str, str], ...] = (  # Flax, torch_reference.Head, transform
    ("mlp/Dense_0/kernel",       "mlp.0.weight",             "linear"),
    ("mlp/Dense_0/bias",         "mlp.0.bias",               "same"),
    ("mlp/Dense_1/kernel",       "mlp.2.weight",             "linear"),
    ("mlp/Dense_1/bias",         "mlp.2.bias",               "same"),
    ("gate/kernel",              "gate.weight",              "linear"),
    ("gate/bias",                "gate.bias",                "same"),
    ("norm/scale",               "norm.weight",              "same"),
    ("norm/bias",                "norm.bias",                "same"),
    ("classifier/kernel",        "classifier.weight",        "linear"),
    ("classifier/bias",          "classifier.bias",          "same"),
    ("global_classifier/kernel", "global_classifier.weight", "linear"),
    ("global_classifier/bias",   "global_classifier.bias",   "same"),
)
# fmt: on

HUGGINGFACE_SPELLINGS: tuple[tuple[str, str], ...] = (  # pattern, published spelling
    (r"^(embeddings|encoder|layers|layernorm)\.", r"vit.\1."),  # ViTMAEModel alone
    (r"^vit\.layers\.", "vit.encoder.layer."),  # state_dict() of transformers 5
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),  # saved by transformers 5
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)

# Prefixes of a classifier in timm's and in fine-tuned encoders; skipped with ``--encoder-only``.
CLASSIFIER = ("head.", "fc_norm.")


def layout_of(names: Iterable[str]) -> Layout | None:
    """The layout whose patch embedding is among the names, or None."""
    names = set(names)
    kernel = next(row for row in TABLE if row.target == "patch_embed/kernel")
    layouts: tuple[Layout, ...] = ("facebook", "huggingface")
    for layout in layouts:
        if kernel.sources(layout)[0] in {published_name(n, layout) for n in names}:
            return layout
    return None


def published_name(name: str, layout: Layout) -> str:
    """A tensor's name in the table's spelling, for files of any release of transformers."""
    if layout == "huggingface":
        for pattern, spelling in HUGGINGFACE_SPELLINGS:
            name = re.sub(pattern, spelling, name)
    return name


def depth(names: Iterable[str], layout: Layout, part: Part) -> int:
    """One more than the highest block number, so that a gap shows up as missing tensors."""
    row = (ENCODER_BLOCK if part == "encoder" else DECODER_BLOCK)[0]
    before = row.sources(layout)[0].split("{i}")[0]
    pattern = re.compile(re.escape(before) + r"(\d+)\.")  # any tensor of a block counts
    return max((int(m[1]) + 1 for m in map(pattern.match, names) if m), default=0)


def rows(encoder_depth: int, decoder_depth: int) -> list[Row]:
    """The table with one row per block; without decoder rows if ``decoder_depth`` is 0."""
    depths = {"encoder": encoder_depth, "decoder": decoder_depth}
    expanded = []
    for row in TABLE:
        if row.part == "decoder" and not decoder_depth:
            continue
        is_block = "{i}" in row.target
        expanded += [row.at(i) for i in range(depths[row.part])] if is_block else [row]
    return expanded


def apply(row: Row, arrays: list[np.ndarray]) -> np.ndarray:
    """The parameter that a row makes of its source arrays.

    Raises:
      ValueError: if the arrays do not have the number of axes that the transform needs, or do
        not fit together.
    """
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if array.ndim != _RANK.get(row.transform, array.ndim):
        raise ValueError(f"has {array.ndim} axes, expected {_RANK[row.transform]}")
    return TRANSFORMS[row.transform](array)


def result_shape(row: Row, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of ``apply``'s result, computed without data; raises like ``apply``."""
    return apply(row, [np.broadcast_to(np.float32(0), s) for s in shapes]).shape


def head_to_flax(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays named as in ``torch_reference.Head`` to Flax paths.

    Raises:
      KeyError: if a name is not in the table.
    """
    by_name = {source: (target, transform) for target, source, transform in HEAD_TABLE}
    return {
        by_name[name][0]: np.ascontiguousarray(TRANSFORMS[by_name[name][1]](np.asarray(array)))
        for name, array in state.items()
    }
