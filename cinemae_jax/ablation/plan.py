"""What an ablation consists of: a base config and rows that each change some of its fields.

In: a config of ``configs/ablation``, as nested dicts.  Out: typed rows, every field of every row
checked before anything runs.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from cinemae_jax import typed
from cinemae_jax.settings import Settings
from cinemae_jax.training.unfrozen import Unfrozen

ROW_FIELDS = ("name", "overrides", "reported", "unfreeze")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One run of an ablation.

    Attributes:
      name: in the tables.
      config: of the run, all overrides made.
      unfrozen: what of the backbone is trained too; None for a frozen one.
      reported: mean accuracy over generators that the paper reports, per cent; None if it has none.
    """

    name: str
    config: Settings
    unfrozen: Unfrozen | None
    reported: float | None

    @property
    def folder(self) -> str:
        """Name of the row's own folder: its name in letters that any file system takes."""
        return re.sub(r"[^a-z0-9.]+", "_", self.name.lower()).strip("_.")


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A whole config file of ablate.

    Attributes:
      title: of the table.
      rows: in the order of the table; the others are compared with the first.
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
    """Checks an ablation (``ConfigDict.to_dict``) and makes it typed.

    Args:
      config: ``title``, ``base`` (a config of train), ``unfrozen`` (``learning_rate`` and
        ``weight_decay``) and ``rows``: a sequence of mappings with ``name`` and, each optional,
        ``overrides`` (dotted fields of ``base`` and their values), ``reported`` and ``unfreeze``.

    Raises:
      ValueError: naming every row that is wrong, and what is wrong with it.
    """
    expected = ("title", "base", "unfrozen", "rows")
    if set(config) != set(expected):
        raise ValueError(f"an ablation has the fields {', '.join(expected)}, not {sorted(config)}")
    try:
        typed.read({name: config[name] for name in ("base", "unfrozen")}, _Sections)
    except ValueError as error:
        raise ValueError(f"the base (its fields are config.base...): {error}") from error
    rows, problems = [], []
    for number, row in enumerate(config["rows"], 1):
        try:
            rows.append(_row(row, config))
        except ValueError as error:
            name = row.get("name", number) if isinstance(row, Mapping) else number
            problems.append(f"row {name!r}: {error}")
    folders = [row.folder for row in rows]
    problems += [
        f"row {row.name!r}: its name is empty or that of another row"
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
        raise ValueError("a row is a mapping with a name")
    unknown = sorted(set(row) - set(ROW_FIELDS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is no field of a row: {', '.join(ROW_FIELDS)}")
    base, part = config["base"], row.get("unfreeze", "")
    for field, value in row.get("overrides", {}).items():
        base = override(base, field, value)
    if part:  # the backbone says something else in every step
        base = override(base, "features.source", "online")
    made = typed.read({"base": base, "unfrozen": config["unfrozen"]}, _Sections)
    unfrozen = Unfrozen(part, **dataclasses.asdict(made.unfrozen)) if part else None
    if unfrozen and made.base.num_seeds != 1:
        raise ValueError(
            f"num_seeds is {made.base.num_seeds}, but seeds share a backbone only while it is "
            "frozen: override it by 1"
        )
    if unfrozen and (not made.base.detector.num_runs or made.base.detector.anomaly != "statistics"):
        raise ValueError("unfreeze needs detector.anomaly 'statistics' and num_runs of 1 or more")
    reported = row.get("reported")
    return Variant(row["name"], made.base, unfrozen, None if reported is None else float(reported))


def override(tree: Mapping[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A copy of nested settings with one dotted field changed.

    Raises:
      ValueError: if there is no such field; names those that read like it.
    """
    there = _fields(tree)
    if field not in there:
        near = difflib.get_close_matches(field, there, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(there)}"
        raise ValueError(f"{field!r} is no field of config.base: {hint}")
    section, _, rest = field.partition(".")
    return {**tree, section: override(tree[section], rest, value) if rest else value}


def _fields(tree: Mapping[str, Any]) -> list[str]:
    """Dotted names of all that can be overridden."""
    names: list[str] = []
    for name, value in tree.items():
        inner = _fields(value) if isinstance(value, Mapping) else None
        names += [name] if inner is None else [f"{name}.{field}" for field in inner]
    return names
