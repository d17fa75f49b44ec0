"""Writes and reads tests/goldens: small models, inputs, and the outputs of ``torch_reference``.

Each golden is one safetensors file with the inputs, every stage of the reference, and the weights
under the names of a published layout; tests convert them first.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from cinemae_jax.model.config import Fusion, MAEConfig, Score, Target
from weights_convert import convert, mapping, sources, stages, verify
from weights_convert.infer import Options
from weights_convert.stages import Inputs, Stages

FOLDER = Path(__file__).parents[1] / "tests" / "goldens"


@dataclass(frozen=True)
class Case:
    """One golden: architecture, layout of its weights, head, score and number of runs."""

    config: MAEConfig
    layout: mapping.Layout
    fusion: Fusion
    variant: Score
    num_runs: int


def _config(sizes: tuple[int, ...], target: Target, eps: float) -> MAEConfig:
    image, patch, width, depth, heads, decoder_width, decoder_depth, decoder_heads = sizes
    encoder = (image, patch, width, depth, heads)
    return MAEConfig(*encoder, decoder_width, decoder_depth, decoder_heads, target, eps)


# Sizes: image, patch; width, depth, heads of the encoder; then those of the decoder.
CASES = {
    "raw_16_huggingface": Case(
        _config((48, 16, 24, 3, 4, 16, 1, 2), "raw", 1e-12),
        "huggingface", "additive", "deviation_plus_mismatch", 2,
    ),
    "norm_pix_14_facebook": Case(
        _config((42, 14, 24, 5, 3, 16, 3, 2), "norm_pix", 1e-6),
        "facebook", "concat", "mismatch", 2,
    ),
    "raw_8_facebook": Case(
        _config((40, 8, 32, 1, 8, 16, 2, 4), "raw", 1e-6),
        "facebook", "gate", "relative", 3,
    ),
    "norm_pix_16_huggingface": Case(
        _config((32, 16, 20, 2, 5, 12, 3, 3), "norm_pix", 1e-12),
        "huggingface", "logit", "conditional_nll", 1,
    ),
}  # fmt: skip
# Large matrices make attention uneven and GELU nonlinear; small tokens make LayerNorm's epsilon
# matter. Without them, some wrong models of this size would pass.
SPREAD, TOKENS, HIDDEN = 0.25, 0.01, 16


@dataclass(frozen=True)
class Golden:
    """A golden in memory: weights by published names, and the stages they must give."""

    case: Case
    weights: Mapping[str, np.ndarray]
    inputs: Inputs
    stages: Stages
    versions: Mapping[str, str]

    def source(self) -> sources.Source:
        """The weights as an opened published file."""
        return sources.Source(
            path=Path("golden"),
            name="golden",
            shapes={k: v.shape for k, v in self.weights.items()},
            dtypes={k: v.dtype.name for k, v in self.weights.items()},
            tensor=lambda name: self.weights[name],
        )

    def options(self) -> Options:
        c = self.case.config
        return Options(c.target, False, c.num_heads, c.decoder_num_heads, c.layer_norm_eps)


def write(folder: Path = FOLDER) -> list[Path]:
    """Writes every golden; the bytes depend on the versions of torch and transformers only."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write_one(folder / f"{name}.safetensors", case) for name, case in CASES.items()]


def write_one(path: Path, case: Case) -> Path:
    """Writes one golden; needs torch and transformers."""
    seed = list(CASES.values()).index(case)
    mae = verify.random_vitmae(case.config, seed, spread=SPREAD, tokens=TOKENS)
    inputs = stages.random_inputs(
        case.config, num_runs=case.num_runs, seed=seed,
        fusion=case.fusion, variant=case.variant, hidden=HIDDEN,
    )  # fmt: skip
    state = {k: v.detach().numpy() for k, v in mae.state_dict().items()}
    groups: dict[str, Mapping[str, np.ndarray]] = {
        "weights": published(state, case.config, case.layout),
        "inputs": {"images": inputs.images, "noise": inputs.noise, "labels": inputs.labels},
        "head": inputs.head,
        "normalizer": inputs.normalizer,
        "stages": verify.torch_stages(mae, inputs),
    }
    flat = {
        f"{group}/{name}": np.ascontiguousarray(array)
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }
    versions = {name: sources.need(name).__version__ for name in ("torch", "transformers")}
    save_file(flat, path, {"case": json.dumps(dataclasses.asdict(case)), **versions})
    return path


def published(
    state: Mapping[str, np.ndarray], config: MAEConfig, layout: mapping.Layout
) -> dict[str, np.ndarray]:
    """A ViTMAE's state dict under the names of a published layout."""
    spelled = {mapping.published_name(k, "huggingface"): v for k, v in state.items()}
    if layout == "huggingface":
        return spelled
    return {
        row.facebook: np.concatenate([spelled[name] for name in row.huggingface])
        for row in mapping.rows(config.depth, config.decoder_depth)
    }


def read(path: Path) -> Golden:
    """Reads a golden; needs no torch."""
    groups: dict[str, Any] = {}
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
        for key in file.keys():  # noqa: SIM118
            group, name = key.split("/", 1)
            groups.setdefault(group, {})[name] = file.get_tensor(key)
    fields = json.loads(header.pop("case"))
    case = Case(**{**fields, "config": MAEConfig(**fields["config"])})
    inputs = Inputs(
        **groups["inputs"],
        head=groups["head"],
        normalizer=groups["normalizer"],
        fusion=case.fusion,
        variant=case.variant,
    )
    return Golden(case, groups["weights"], inputs, groups["stages"], header)


def converted(golden: Golden) -> tuple[MAEConfig, dict[str, np.ndarray]]:
    """Architecture and parameters of a golden's weights, through the converter."""
    source = golden.source()
    config, fillings, _ = convert.plan(source, golden.options())
    return config, convert.fill(source, fillings)
