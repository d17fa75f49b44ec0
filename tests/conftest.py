"""Eight CPU devices, strict numerics, run-time shape checks, and a small labelled data set."""

import os
import tempfile

os.environ["XLA_FLAGS"] = (  # small programs, run once: compile fast instead of running fast
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cinemae-tests-")  # catalogs are cached

from jaxtyping import install_import_hook

# Shapes and dtypes are checked at run time.
CHECKED = ("lcas", "masking", "layers", "mae", "vit", "head", "cinemae")
install_import_hook([f"cinemae_jax.model.{name}" for name in CHECKED], "beartype.beartype")

from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from cinemae_jax import weights
from cinemae_jax.model.cinemae import Backbone, random_backbone
from cinemae_jax.model.config import MAEConfig
from cinemae_jax.runtime.devices import Replicas

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
flags.FLAGS.mark_as_parsed()

SMALL = MAEConfig(
    image_size=32,
    patch_size=8,
    width=24,
    depth=2,
    num_heads=3,
    decoder_width=16,
    decoder_depth=2,
    decoder_num_heads=2,
)
GENERATORS = ("gen_a", "gen_b")


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return random_backbone(SMALL)


@pytest.fixture(scope="session")
def backbone_file(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "small.safetensors"
    weights.save(path, backbone.config, backbone.params)
    return path


@pytest.fixture(scope="session", params=[1, 8])
def replicas(request: pytest.FixtureRequest) -> Replicas:
    return Replicas(tuple(jax.devices()[: request.param]))


def photo(rng: np.random.Generator, *, ai: bool, side: int = 40) -> np.ndarray:
    """A picture whose class shows in its texture: smooth (nature) or noisy (ai)."""
    base = rng.integers(60, 190, (2, 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(base).resize((side, side), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 70 if ai else 2, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def write_data_set(root: Path, *, train: int = 24, val: int = 7) -> Path:
    """GenImage's layout: gen_a with train and val, gen_b with val only; images a class."""
    rng = np.random.default_rng(0)
    for generator, split, count in (
        ("gen_a", "train", train),
        ("gen_a", "val", val),
        ("gen_b", "val", val),
    ):
        for label in ("nature", "ai"):
            folder = root / generator / "imagenet_ai_test" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(photo(rng, ai=label == "ai")).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("data"))
