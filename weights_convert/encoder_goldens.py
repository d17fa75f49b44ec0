"""Regenerates tests/goldens/encoders: small encoders, images, and what transformers makes of them.

Each golden is one safetensors file: tensors as a repository would publish them, so that the tests
convert them first; pixels; every stage of the reference.  Reading needs no torch.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from cinemae_jax.model.vit import ViTConfig
from weights_convert import encoder_reference as reference
from weights_convert import goldens, sources
from weights_convert.stages import Stages

FOLDER = goldens.FOLDER / "encoders"
_SIZES: dict[str, Any] = {
    "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 48,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden: architecture, and height and width of its images."""

    config: ViTConfig
    size: tuple[int, int]


CASES = {
    "clip": Case(
        ViTConfig("clip", 16, **_SIZES, layer_norm_eps=1e-5, activation="quick_gelu", projection=6),
        (16, 16),
    ),
    "dinov2": Case(ViTConfig("dinov2", 28, **_SIZES, layer_norm_eps=1e-6), (12, 20)),
    "dinov2_registers": Case(
        ViTConfig(
            "dinov2", 28, **_SIZES, layer_norm_eps=1e-6, num_registers=3,
            resampling="bicubic_antialias",
        ),
        (16, 20),
    ),
    "dinov3": Case(
        ViTConfig("dinov3", 16, **_SIZES, layer_norm_eps=1e-5, num_registers=3), (20, 12)
    ),
    "siglip": Case(
        ViTConfig("siglip", 16, **_SIZES, layer_norm_eps=1e-6, activation="tanh_gelu"), (16, 16)
    ),
    "siglip2_naflex": Case(
        ViTConfig(
            "siglip", 20, **_SIZES, layer_norm_eps=1e-6, activation="tanh_gelu",
            resampling="bilinear_antialias",
        ),
        (12, 24),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Golden:
    """A golden, read.

    Attributes:
      tensors, entries: what the repository's model.safetensors and config.json would hold.
      pixels: float32 (B, H, W, 3).
      stages: of the reference.
      versions: of torch and transformers.
    """

    tensors: Mapping[str, np.ndarray]
    entries: Mapping[str, Any]
    pixels: np.ndarray
    stages: Stages
    versions: Mapping[str, str]

    def write_folder(self, folder: Path, **changes: Any) -> Path:
        """The golden as a repository; entries of config.json may be changed."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.tensors), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({**self.entries, **changes}))
        return folder


def write(folder: Path = FOLDER) -> list[Path]:
    """Writes every golden; the same torch and transformers give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write_one(folder / f"{name}.safetensors", case) for name, case in CASES.items()]


def write_one(path: Path, case: Case) -> Path:
    seed = list(CASES.values()).index(case)
    model = reference.random_model(case.config, seed, spread=goldens.SPREAD, tokens=goldens.TOKENS)
    pixels = reference.random_pixels(*case.size, seed=seed)
    groups: dict[str, Mapping[str, np.ndarray]] = {
        "tensors": reference.published(model),
        "inputs": {"pixels": pixels},
        "stages": reference.torch_stages(model, pixels),
    }
    flat = {
        f"{group}/{name}": np.ascontiguousarray(array)
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }
    versions = {name: sources.need(name).__version__ for name in ("torch", "transformers")}
    save_file(flat, path, {"entries": json.dumps(reference.entries(case.config)), **versions})
    return path


def read(path: Path) -> Golden:
    """Reads a golden."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
        for key in file.keys():  # noqa: SIM118
            group, name = key.split("/", 1)
            groups.setdefault(group, {})[name] = file.get_tensor(key)
    entries = json.loads(header.pop("entries"))
    return Golden(groups["tensors"], entries, groups["inputs"]["pixels"], groups["stages"], header)
