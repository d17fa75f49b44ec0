"""An ablation: a base config, and rows that each override some of its fields.

In: a config of ``configs/ablation``, as nested dicts.  Out: typed rows; all fields of all rows are
checked before anything runs.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from cinemae_jax import typed
from cinemae_jax.settings import Settings
from cinemae_jax.training.unfrozen import Unfrozen

FIELDS = ("title", "base", "unfrozen", "rows")
OPTIONAL = ("timed",)
ROW_FIELDS = ("name", "overrides", "reported", "unfreeze", "control")
Control = Literal["", "random weights", "shuffled scores"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One run of an ablation.

    Attributes:
      name: in the tables.
      config: of the run, with all overrides.
      unfrozen: how the backbone is trained; None keeps it frozen.
      reported: mean accuracy over generators in the paper, per cent; None if there is none.
      timed: measure the time per image.
      control: what the row is trained and scored with instead, as in ``configs.ablation``.
    """

    name: str
    config: Settings
    unfrozen: Unfrozen | None
    reported: float | None
    timed: bool = False
    control: Control = ""

    @property
    def folder(self) -> str:
        """Name of the row's folder: the row's name in characters that every file system accepts."""
        return re.sub(r"[^a-z0-9.]+", "_", self.name.lower()).strip("_.")


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A whole config of ``ablate``.

    Attributes:
      title: of the table.
      rows: in the order of the table; the first is the reference of all others.
    """

    title: str
    rows: tuple[Variant, ...]


@dataclasses.dataclass(frozen=True)
class _Optimizer:
    learning_rate: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class _Sections:
    base: Settings
    unfrozen: _Optimizer


def read(config: Mapping[str, Any]) -> Ablation:
    """Checks the config of an ablation (``ConfigDict.to_dict``) and converts it to dataclasses.

    Args:
      config: ``title``, ``base`` (a config of ``train``), ``unfrozen`` (``learning_rate`` and
        ``weight_decay``), ``rows``: mappings as ``configs.ablation.RowConfig``, and optionally
        ``timed``: measure the time per image of every row.

    Raises:
      ValueError: names every wrong row and its mistake.
    """
    if set(config) - set(OPTIONAL) != set(FIELDS):
        raise ValueError(
            f"an ablation needs exactly the fields {', '.join(FIELDS)}; this one has "
            f"{', '.join(sorted(config))}"
        )
    try:
        typed.read({name: config[name] for name in ("base", "unfrozen")}, _Sections)
    except ValueError as error:
        raise ValueError(f"base config (set its fields as config.base.*): {error}") from error
    rows, problems = [], []
    for number, row in enumerate(config["rows"], 1):
        try:
            rows.append(_row(row, config))
        except ValueError as error:
            name = row.get("name", number) if isinstance(row, Mapping) else number
            problems.append(f"row {name!r}: {error}")
    folders = [row.folder for row in rows]
    problems += [
        f"row {row.name!r}: the name is empty, or its folder is that of another row"
        for row in rows
        if not row.folder or folders.count(row.folder) > 1
    ]
    if problems:
        raise ValueError("; ".join(problems))
    if not rows:
        raise ValueError("the ablation has no rows")
    return Ablation(str(config["title"]), tuple(rows))


def _row(row: Any, config: Mapping[str, Any]) -> Variant:
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
        raise ValueError("a row must be a mapping with a 'name'")
    unknown = sorted(set(row) - set(ROW_FIELDS))
    if unknown:
        raise ValueError(f"unknown {', '.join(unknown)}: a row has {', '.join(ROW_FIELDS)}")
    base, part = config["base"], row.get("unfreeze", "")
    for field, value in row.get("overrides", {}).items():
        base = override(base, field, value)
    if part:  # features change with the backbone in every step: a bank cannot hold them
        base = override(base, "features.source", "online")
    made = typed.read({"base": base, "unfrozen": config["unfrozen"]}, _Sections)
    unfrozen = Unfrozen(part, **dataclasses.asdict(made.unfrozen)) if part else None
    if unfrozen and made.base.num_seeds != 1:
        raise ValueError(
            f"num_seeds is {made.base.num_seeds}, but seeds cannot share an unfrozen backbone: "
            "override num_seeds with 1"
        )
    if unfrozen and (not made.base.detector.num_runs or made.base.detector.anomaly != "statistics"):
        raise ValueError("unfreeze needs detector.anomaly 'statistics' and detector.num_runs ≥ 1")
    if unfrozen and made.base.global_backbone:
        raise ValueError("unfreeze trains the masked autoencoder: leave global_backbone empty")
    control = row.get("control", "")
    if control not in get_args(Control):
        raise ValueError(f"control is {control!r}: use one of {', '.join(get_args(Control)[1:])}")
    if control and (part or made.base.features.source != "bank"):
        raise ValueError("a control needs features.source 'bank' and a frozen backbone")
    if control == "shuffled scores" and made.base.detector.sensitivity == "patch":
        raise ValueError("shuffled scores have other masks: set detector.sensitivity to 'run'")
    reported = row.get("reported")
    return Variant(
        row["name"],
        made.base,
        unfrozen,
        None if reported is None else float(reported),
        bool(config.get("timed", False)),
        control,
    )


def override(tree: Mapping[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A copy of nested settings with one dotted field changed.

    Raises:
      ValueError: if the field is unknown; suggests similar ones.
    """
    known = _fields(tree)
    if field not in known:
        near = difflib.get_close_matches(field, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}"
        raise ValueError(f"unknown field {field!r} of config.base: {hint}")
    section, _, rest = field.partition(".")
    return {**tree, section: override(tree[section], rest, value) if rest else value}


def _fields(tree: Mapping[str, Any]) -> list[str]:
    """Dotted names of all fields that can be overridden."""
    names: list[str] = []
    for name, value in tree.items():
        inner = _fields(value) if isinstance(value, Mapping) else None
        names += [name] if inner is None else [f"{name}.{field}" for field in inner]
    return names
