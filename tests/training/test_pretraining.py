"""Pre-training end to end: what it writes, how it resumes, and that devices do not matter."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from cinemae_jax import typed, weights
from cinemae_jax.configs import sd14
from cinemae_jax.model.cinemae import Backbone, random_backbone
from cinemae_jax.model.mae import MAE
from cinemae_jax.model.reconstruction import pictures
from cinemae_jax.runtime.checkpoints import CheckpointError, Checkpoints
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import PretrainSettings
from cinemae_jax.training import pretraining
from tests.conftest import SMALL, photo
from tests.helpers.small_run import logged, small_pretraining

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(48):
        Image.fromarray(photo(rng, ai=False)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    bad = pretraining.pretrain(small_pretraining(photos), workdir)
    assert [Path(image.path).name for image in bad] == ["broken.jpg"]
    return workdir


def test_the_loss_falls_and_a_backbone_with_its_origin_comes_out(finished: Path) -> None:
    history = logged(finished)
    assert history[-1]["validation_loss"] < 0.9 * history[0]["validation_loss"]
    backbone = weights.load(finished / "backbone.safetensors")
    assert backbone.config == SMALL
    origin = weights.origin(finished / "backbone.safetensors")
    assert json.loads(origin["settings"])["epochs"] == 6


def test_reconstructions_can_be_looked_at(finished: Path) -> None:
    with Image.open(finished / "reconstructions.png") as sheet:
        assert sheet.width == 3 * SMALL.image_size
        assert sheet.height % SMALL.image_size == 0


def test_stopped_and_resumed_equals_undisturbed(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_pretraining(photos)
    save = Checkpoints.save

    def save_and_stop(self: object, step: int, *arguments: object) -> None:
        save(self, step, *arguments)
        if step == 14:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretraining.pretrain(config, tmp_path)
    pretraining.pretrain(config, tmp_path)
    assert logged(tmp_path) == logged(finished)
    one, two = (weights.load(d / "backbone.safetensors") for d in (tmp_path, finished))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_another_architecture_does_not_resume(photos: Path, finished: Path) -> None:
    config = small_pretraining(photos, depth=3)
    with pytest.raises(CheckpointError, match=r"another run: settings.model.depth was 2, is 3\."):
        pretraining.pretrain(config, finished)


def test_devices_do_not_matter(photos: Path, finished: Path, tmp_path: Path) -> None:
    """Eight against one, after all steps: AdamW must not blow up what rounding leaves."""
    config = small_pretraining(photos)
    pretraining.pretrain(config, tmp_path, Replicas(tuple(jax.devices()[:1])))
    for line, expected in zip(logged(tmp_path), logged(finished), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    one, eight = (weights.load(d / "backbone.safetensors") for d in (tmp_path, finished))
    # gradients differ by the order of sums, about 1e-7 of their size; learning rate 3e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, eight.params)


@pytest.mark.parametrize("target", ["raw", "norm_pix"])
def test_pictures_show_visible_patches_unchanged(target: str) -> None:
    config = dataclasses.replace(SMALL, target=target)
    model = MAE(config)
    params = random_backbone(config).params
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    sheet = np.asarray(pictures(params, images, jax.random.key(0), model=model, mask_ratio=0.75))
    original, seen, filled = np.split(sheet, 3, axis=1)
    np.testing.assert_array_equal(original, images.reshape(-1, 32, 3))
    visible = (seen == original).all(-1)
    assert 0.24 < visible.mean() < 0.27
    np.testing.assert_array_equal(filled[visible], original[visible])
    assert (filled[~visible] != original[~visible]).any()


def test_missing_photos_are_named(tmp_path: Path) -> None:
    config = small_pretraining(tmp_path / "none")
    with pytest.raises(ValueError, match="none is not a folder"):
        pretraining.pretrain(config, tmp_path)
    none = dataclasses.replace(config, data=dataclasses.replace(config.data, photos=()))
    with pytest.raises(ValueError, match="no folder of photographs is named"):
        pretraining.pretrain(none, tmp_path)


def test_a_config_of_another_job_is_refused_by_its_fields() -> None:
    with pytest.raises(ValueError, match=r"config.backbone is not a setting"):
        typed.read(sd14.get_config().to_dict(), PretrainSettings)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_images_taken_in_chunks_give_the_step_of_all_at_once(
    backbone: Backbone, chunk: int
) -> None:
    """3 does not divide 4: one at a time then.  Other orders of sums differ by 1e-6 of a value."""
    one, tx = Replicas(tuple(jax.devices()[:1])), optax.sgd(1.0)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
        "example_id": np.arange(4, dtype=np.uint32),
        "epoch": np.arange(4, dtype=np.int32),
        "valid": np.array([True, True, False, True]),
    }

    def stepped(chunk: int) -> Any:
        step = pretraining.make_step(MAE(SMALL), tx, 0.75, chunk)
        state = pretraining.PretrainState(backbone.params, tx.init(backbone.params))
        placed = one.replicate((state, jax.random.key(0)))
        state, loss = one.pmap_step(step, replicated=2)(*placed, one.split(batch))
        return state.params, loss

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        stepped(chunk),
        stepped(4),
    )
