"""Published MAE file → frozen backbone of this package, or an error that lists every problem.

The architecture is inferred from tensor shapes and checked against the config.  Every source tensor
is used once, every parameter is filled once, and no value is invented.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from flax import traverse_util

from cinemae_jax import __version__, weights
from cinemae_jax.model.config import MAEConfig
from cinemae_jax.model.vit import ViTConfig
from weights_convert import encoder_mapping, infer, mapping, sources
from weights_convert.infer import Options
from weights_convert.sources import ConversionError, Source

# A parameter and the names, in the file, of the tensors that fill it.
Filling = tuple[mapping.Row, list[str]]


@dataclass(frozen=True)
class Converted:
    """The file written, its sha256, its architecture, the origin in its header, and notes."""

    path: Path
    sha256: str
    config: MAEConfig | ViTConfig
    origin: Mapping[str, str]
    notes: tuple[str, ...]


NAMED = 5  # tensors named in a message


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    name: str | None = None,
) -> Converted:
    """Converts one published file.

    Args:
      source: file, or folder with config.json and the tensors.
      out: safetensors file to write.
      options: what the source does not state.
      name: of the source in the header; by default the file's.

    Raises:
      ConversionError: if the source is refused, listing all problems; nothing is written then.
    """
    options = options or Options()
    with sources.opened(Path(source), name) as opened:
        config, fillings, notes = plan(opened, options)
        params = fill(opened, fillings)
        origin = _origin(opened, config, notes)
        tree = traverse_util.unflatten_dict(params, sep="/")
        sha256 = weights.save(out, config, tree, origin)
    return Converted(Path(out), sha256, config, origin, tuple(notes))


def plan(source: Source, options: Options) -> tuple[MAEConfig, list[Filling], list[str]]:
    """Architecture, the tensors that fill each parameter, and notes; reads no tensor.

    Raises:
      ConversionError: listing everything that does not fit.
    """
    layout, encoder = mapping.layout_of(source.shapes), encoder_mapping.recognised(source.shapes)
    if encoder:
        raise ConversionError(
            f"{source.path} holds no MAE: its tensors are named as those of {encoder}. Put the "
            "config.json of the same repository beside it, and name the folder"
        )
    if layout is None:
        raise ConversionError(
            f"{source.path} holds no MAE: its {len(source.shapes)} tensors include no patch "
            "embedding named as in facebookresearch/mae or Hugging Face's ViTMAE; the first are "
            + ", ".join(list(source.shapes)[:NAMED])
        )
    names, doubles = _published(source, layout)
    depths = mapping.depth(names, layout, "encoder"), mapping.depth(names, layout, "decoder")
    _check_parts(source, options, names, layout, depths)
    config, open_questions = infer.architecture(source, options, names, layout, depths)
    problems = [*doubles, *_odd_entries(source), *open_questions]
    rows = mapping.rows(*depths)
    problems += _name_problems(rows, names, layout, options)
    if config is not None:
        expected = weights.expected_shapes(config)
        problems += shape_problems(rows, names, source, layout, expected)
    if problems or config is None:
        raise _refusal(source, problems)
    fillings = [(row, [names[n] for n in row.sources(layout)]) for row in rows]
    return config, fillings, _notes(source, layout, names)


def _refusal(source: Source, problems: list[str]) -> ConversionError:
    return ConversionError("\n  - ".join([f"{source.path} is refused:", *problems]))


def _published(source: Source, layout: mapping.Layout) -> tuple[dict[str, str], list[str]]:
    """Published name → name in the file, and a problem for every published name found twice."""
    names: dict[str, str] = {}
    doubles = []
    for name in source.shapes:
        published = mapping.published_name(name, layout)
        if published in names:
            doubles.append(f"{name} and {names[published]} name the same tensor")
        names[published] = name
    return names, doubles


def _check_parts(
    source: Source,
    options: Options,
    names: Mapping[str, str],
    layout: mapping.Layout,
    depths: tuple[int, int],
) -> None:
    """Refuses at once what is not a whole MAE; a list of its missing tensors would hide that."""
    of_decoder = [
        n for row in mapping.rows(depths[0], max(depths[1], 1)) if row.part == "decoder"
        for n in row.sources(layout)
    ]  # fmt: skip
    found = sum(n in names for n in of_decoder)
    if not found and not options.encoder_only:
        raise ConversionError(
            f"{source.path} holds no decoder (0 of {len(of_decoder)} decoder tensors of even one "
            "block): use a mae_visualize_* or *_full file, or a ViTMAEForPreTraining folder. "
            "--encoder-only accepts an encoder alone, for detectors with K = 0"
        )
    if found and options.encoder_only:
        raise ConversionError(
            f"{source.path} holds a decoder ({found} tensors): drop --encoder-only; detectors with "
            "K = 0 use the whole file, too"
        )


def _odd_entries(source: Source) -> list[str]:
    problems = [f"{name} is not a tensor" for name in source.strays]
    for name, dtype in source.dtypes.items():
        if dtype not in sources.FLOATS:
            problems.append(f"{name} is {dtype}: use a file with floating-point weights")
    return problems


def _name_problems(
    rows: list[mapping.Row], names: Mapping[str, str], layout: mapping.Layout, options: Options
) -> list[str]:
    used = [n for row in rows for n in row.sources(layout)]
    problems = [f"{n} is missing" for n in used if n not in names]
    for published, name in names.items():
        left_out = options.encoder_only and published.startswith(mapping.CLASSIFIER)
        if published not in used and not left_out:
            problems.append(f"{name} is unexpected: no parameter of this MAE takes it")
    return problems


def shape_problems(
    rows: list[mapping.Row],
    names: Mapping[str, str],
    source: Source,
    layout: mapping.Layout,
    expected: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """Parameters that no row fills or two do, and tensors of a shape that does not fit."""
    targets = [row.target for row in rows]
    problems = [f"no row of the table fills {t}" for t in sorted(set(expected) - set(targets))]
    problems += [
        f"{t} is filled twice" for t in sorted({t for t in targets if targets.count(t) > 1})
    ]
    for row in rows:
        found = row.sources(layout)
        if not all(n in names for n in found):
            continue  # already listed as missing
        shapes = [source.shapes[names[n]] for n in found]
        label = " + ".join(found)
        try:
            shape = mapping.result_shape(row, shapes)
        except ValueError as error:
            problems.append(f"{label} {error}")
            continue
        if shape != expected.get(row.target):
            problems.append(
                f"{label} {' + '.join(map(str, shapes))} gives {row.target} the shape {shape}, "
                f"expected {expected.get(row.target)} from the rest of the file"
            )
    return problems


def _notes(source: Source, layout: mapping.Layout, names: Mapping[str, str]) -> list[str]:
    notes = []
    dtypes = sorted(set(source.dtypes.values()))
    if dtypes != ["float32"]:
        notes.append(f"source tensors are {', '.join(dtypes)}; written as float32")
    left_out = sorted(n for n in names if n.startswith(mapping.CLASSIFIER))
    if left_out and layout == "facebook":
        notes.append(f"classifier left out: {', '.join(left_out)}")
    if "_ganloss" in source.path.name:
        notes.append("this variant was trained further with a GAN loss, for looking at")
    return notes


def fill(source: Source, fillings: list[Filling]) -> dict[str, np.ndarray]:
    """Every parameter, contiguous float32.

    Raises:
      ConversionError: naming the tensors that hold NaN or infinity.
    """
    filled, wrong = {}, []
    for row, names in fillings:
        arrays = [source.tensor(name) for name in names]
        filled[row.target] = np.ascontiguousarray(mapping.apply(row, arrays))
        if not np.isfinite(filled[row.target]).all():
            wrong.append(" + ".join(names))
    if wrong:
        raise _refusal(source, [f"{name} holds NaN or infinity" for name in wrong])
    return filled


def _origin(source: Source, config: MAEConfig, notes: list[str]) -> dict[str, str]:
    shape = {k: v for k, v in asdict(config).items() if k != "target"}
    return {
        "source": source.name,
        "source_sha256": weights.file_sha256(source.path),
        "architecture": ", ".join(f"{k} {v}" for k, v in shape.items()),
        "target": config.target if config.has_decoder else "none: encoder only, for K = 0",
        "source_dtypes": ", ".join(sorted(set(source.dtypes.values()))),
        "converter": f"weights_convert {__version__}",
        "licence": source.licence,
        "notes": "; ".join(notes),
    }
