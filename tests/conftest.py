"""Eight CPU devices, strict numerics, run-time shape checks, and a small labelled data set."""

import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = (  # small programs, run once: compile fast instead of running fast
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# One folder of caches per session: every program is compiled once for all tests, for all workers of
# pytest-xdist and for the processes that tests start, which inherit this environment.
IS_OWNER = "CINEMAE_TEST_CACHE" not in os.environ
if IS_OWNER:
    os.environ["CINEMAE_TEST_CACHE"] = tempfile.mkdtemp(prefix="cinemae-tests-")
CACHE = os.environ["CINEMAE_TEST_CACHE"]
os.environ["XDG_CACHE_HOME"] = CACHE  # catalogs
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{CACHE}/xla"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

from jaxtyping import install_import_hook

import tests.helpers.shapes  # noqa: F401  # the hook looks it up by name

install_import_hook("cinemae_jax.model", "tests.helpers.shapes.checked")

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from cinemae_jax import weights
from cinemae_jax.evaluation import plots
from cinemae_jax.model.cinemae import Backbone, random_backbone
from cinemae_jax.model.config import MAEConfig
from cinemae_jax.runtime.devices import Replicas

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
flags.FLAGS.mark_as_parsed()
hypothesis.settings.register_profile(  # a busy machine is not a failure
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

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


def pytest_unconfigure() -> None:
    if IS_OWNER:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def free_programs() -> Iterator[None]:
    """Compiled programs of a file are dropped after it, or a worker would hold all of them."""
    yield
    jax.clear_caches()


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, which take a third of the time of a small run."""
    monkeypatch.setattr(plots, "sections", lambda *_: [])


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
    """An image whose class shows in its texture: smooth (nature) or noisy (ai)."""
    base = rng.integers(60, 190, (2, 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(base).resize((side, side), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 70 if ai else 2, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def write_data_set(root: Path, *, train: int = 24, val: int = 7) -> Path:
    """GenImage's layout: gen_a with train and val, gen_b with val; counts are images per class."""
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
