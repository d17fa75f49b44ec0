"""A global encoder beside the autoencoder: views, bank, training, bundle, prediction, export."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cinemae_jax import extract, train, weights
from cinemae_jax.data.catalog import scan
from cinemae_jax.data.order import Order
from cinemae_jax.data.transforms import GlobalView, MultiCrop, Views
from cinemae_jax.detector import bundle, export, inputs, loading, resuming
from cinemae_jax.detector.api import Detector
from cinemae_jax.features import filling, splits
from cinemae_jax.features.run import Run
from cinemae_jax.features.sources import Sets
from cinemae_jax.model import cinemae, vit
from cinemae_jax.model.vit import Preprocessing, ViT, ViTConfig
from cinemae_jax.runtime.checkpoints import CheckpointError
from cinemae_jax.runtime.devices import Replicas, merge
from cinemae_jax.settings import Settings
from tests.conftest import photo
from tests.helpers.pictures import encoded
from tests.helpers.small_run import small_settings

pytestmark = pytest.mark.usefixtures("no_figures")

CONFIG = ViTConfig(
    family="clip",
    image_size=32,
    patch_size=16,
    width=16,
    depth=3,
    num_heads=2,
    mlp_width=32,
    layer_norm_eps=1e-5,
    activation="quick_gelu",
    projection=8,
)
FED = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), 32, 36, "bicubic")


def write_encoder(path: Path, seed: int = 0, config: ViTConfig = CONFIG) -> Path:
    params = vit.initial_variables(config, jax.random.key(seed))["params"]
    weights.save_encoder(path, config, params, FED)
    return path


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "clip.safetensors")


def settings(data_set: Path, backbone_file: Path, encoder_file: Path, **data: object) -> Settings:
    config = small_settings(data_set, backbone_file)
    return dataclasses.replace(
        config,
        global_backbone=str(encoder_file),
        data=dataclasses.replace(config.data, **data),
        features=dataclasses.replace(config.features, num_views=2),
        train=dataclasses.replace(config.train, epochs=1),
    )


def opened(config: Settings, workdir: Path) -> Sets:
    data = splits.read_data(config.data)
    return filling.open_sets(config, data, loading.load_backbone(config), Run.start(workdir))


# --- views --------------------------------------------------------------------------------------


def test_crops_do_not_depend_on_the_view() -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    plain = MultiCrop(32, 4, random=True, flip=True)
    for of in ("crop", "whole"):
        both = dataclasses.replace(plain, view=GlobalView(24, of, shortest_edge=28))
        assert repr(both) == repr(plain)  # the recipe of the backbone's features stays
        for seed in range(4):
            views = both(data, np.random.default_rng(seed))
            assert isinstance(views, Views)
            np.testing.assert_array_equal(views.image, plain(data, np.random.default_rng(seed)))
            assert views.global_image.shape == both.global_shape


def test_both_views_are_mirrored_together() -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    plain = MultiCrop(32, 1, view=GlobalView(24, "whole", shortest_edge=28))
    straight, seen = plain(data, np.random.default_rng(0)), set()
    for seed in range(8):
        views = dataclasses.replace(plain, flip=True)(data, np.random.default_rng(seed))
        mirrored = not np.array_equal(views[0], straight[0])
        seen.add(mirrored)
        for one, other in zip(views, straight, strict=True):
            np.testing.assert_array_equal(one, other[:, :, ::-1] if mirrored else other)
    assert seen == {False, True}


def test_a_whole_view_is_of_the_image_before_the_crops_resize_it() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    native = MultiCrop(32, 1, view=GlobalView(24, "whole", shortest_edge=28))
    resized = dataclasses.replace(native, resize=33)
    np.testing.assert_array_equal(resized.cut(image)[1], native.cut(image)[1])


def test_a_view_of_each_crop_is_the_crop_resized() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8))
    views = MultiCrop(32, 4, view=GlobalView(16, "crop", interpolation="bilinear")).cut(image)
    assert isinstance(views, Views)
    for crop, square in zip(views.image, views.global_image, strict=True):
        expected = Image.fromarray(crop).resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(square, np.asarray(expected))


@pytest.mark.parametrize(("edge", "box"), [(30, (7, 1, 35, 29)), (0, None)])
def test_a_whole_view_is_what_the_encoder_was_trained_on(edge: int, box: tuple | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 84, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    views = MultiCrop(32, 1, view=GlobalView(28, "whole", shortest_edge=edge)).cut(image)
    assert isinstance(views, Views)
    size = (42, 30) if edge else (28, 28)
    expected = image.resize(size, Image.Resampling.BICUBIC).crop(box)
    np.testing.assert_array_equal(views.global_image[0], np.asarray(expected))


# --- features and bank --------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["crop", "whole"])
def test_a_bank_gives_the_features_of_both(
    data_set: Path, backbone_file: Path, encoder_file: Path, tmp_path: Path, of: str
) -> None:
    config = settings(
        data_set, backbone_file, encoder_file, global_view=of, num_crops=4, eval_crops=9
    )
    online = dataclasses.replace(
        config, features=dataclasses.replace(config.features, source="online")
    )
    banked, computed = opened(config, tmp_path), opened(online, tmp_path)
    order = Order(len(banked.train.images), 8, 2, seed=5)
    pairs = [
        *zip(banked.train.training(order, 0), computed.train.training(order, 0), strict=True),
        *zip(banked.test.scoring(), computed.test.scoring(), strict=True),
    ]
    for (batch, stored), (_, found) in pairs:
        one, two = merge(stored), merge(found)
        valid = np.repeat(batch["valid"], len(one.f_global) // len(batch["row"]))
        assert one.f_global.shape[1] == CONFIG.projection
        np.testing.assert_allclose(one.f_global[valid], two.f_global[valid], atol=2e-5)
        np.testing.assert_allclose(one.uniform_share[valid], two.uniform_share[valid])


def test_features_are_those_of_the_encoder(
    data_set: Path, backbone_file: Path, encoder_file: Path
) -> None:
    config = settings(data_set, backbone_file, encoder_file, global_view="whole")
    backbone = loading.load_backbone(config)
    assert backbone.encoder is not None
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    normalised = (pixels / 255 - np.array(FED.mean)) / np.array(FED.std)
    variables = {"params": backbone.encoder.params}
    shown = jnp.asarray(normalised, jnp.float32)
    expected = ViT(CONFIG).apply(variables, shown, method="global_feature")
    found = cinemae.encode(backbone.encoder, jnp.asarray(pixels), config.detector)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_encoder_added_later_extracts_nothing_else(
    data_set: Path, backbone_file: Path, encoder_file: Path, tmp_path: Path
) -> None:
    config = settings(data_set, backbone_file, encoder_file, global_view="whole")
    assert extract.extract(dataclasses.replace(config, global_backbone=""), tmp_path) == []
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    together = tmp_path / "together"
    assert extract.extract(config, tmp_path) == extract.extract(config, together) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    new = sorted((tmp_path / "bank").glob("encoder_*/*/*.parquet"))
    assert len(new) == 3
    name = f"f_global_{weights.file_sha256(encoder_file)[:12]}"
    for path in new:
        one = pq.read_table(path)
        two = pq.read_table(together / path.relative_to(tmp_path))
        assert name in one.column_names
        assert one.equals(two)


def test_a_lost_part_of_an_encoder_is_extracted_alone(
    data_set: Path, backbone_file: Path, encoder_file: Path, tmp_path: Path
) -> None:
    config = settings(data_set, backbone_file, encoder_file, global_view="whole")
    extract.extract(config, tmp_path)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").rglob("*.parquet")}
    lost = next(path for path in parts if "encoder_" in str(path))
    content = lost.read_bytes()
    lost.unlink()
    extract.extract(config, tmp_path)
    assert lost.read_bytes() == content
    assert {p for p, at in parts.items() if p.stat().st_mtime_ns != at} == {lost}


# --- a trained detector -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(
    data_set: Path,
    backbone_file: Path,
    encoder_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = settings(data_set, backbone_file, encoder_file, global_view="whole", eval_crops=4)
    assert train.train(config, folder) == []
    return folder


def test_scores_of_evaluation_bundle_and_export_agree(
    run: Path, data_set: Path, backbone_file: Path, encoder_file: Path, tmp_path: Path
) -> None:
    bundled = tmp_path / "mine.safetensors"
    bundle.save(bundled, bundle.load(run))
    with pytest.raises(weights.BackboneError, match=f"global backbone {encoder_file.name}"):
        bundle.load(bundled, backbone=str(backbone_file))
    for file in (backbone_file, encoder_file):
        shutil.copy(file, tmp_path)
    one_device = Replicas(tuple(jax.devices()[:1]))
    detector = Detector.load(bundled, replicas=one_device)
    assert detector.name.split()[1] == Detector.load(run, replicas=one_device).name.split()[1]
    rows = pyarrow.csv.read_csv(run / "scores.csv").to_pylist()
    test = scan(data_set).select(split="val").table.to_pylist()
    expected = {row["path"]: row["logit"] for row in rows}
    pictures = [inputs.read(data_set / row["path"]) for row in test]
    views = [detector.transform.cut(one.image) for one in pictures]
    stacked = jax.tree.map(lambda *x: np.stack(x), *views)
    ids = np.array([row["example_id"] for row in test], np.uint64).astype(np.uint32)
    logits = detector.score_crops(stacked, ids).logit[:, 0]
    np.testing.assert_allclose(logits, [expected[row["path"]] for row in test], atol=1e-4)
    record = export.save(tmp_path / "mine.stablehlo", detector, platforms=("cpu",))
    assert record["global_backbone_sha256"] == weights.file_sha256(encoder_file)
    artefact = export.load(tmp_path / "mine.stablehlo")
    np.testing.assert_allclose(artefact(stacked, ids), logits, atol=1e-4)


def test_it_predicts_and_draws_heat_maps(run: Path) -> None:
    detector = Detector.load(run, replicas=Replicas(tuple(jax.devices()[:1])))
    picture = photo(np.random.default_rng(0), ai=True, side=60)
    good, bad = detector.predict([picture, b"junk"], stability=True)
    assert good.logit is not None
    assert np.isfinite(good.logit)
    assert good.stability
    assert bad.error
    assert np.isfinite(good.lcas_map().patches).any()


def test_another_encoder_is_refused(run: Path, tmp_path: Path) -> None:
    other = write_encoder(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(CheckpointError, match="another global backbone"):
        loading.load(run, global_backbone=str(other))
    trained = loading.load(run)
    with pytest.raises(CheckpointError, match="another global backbone"):
        resuming.require_backbone(
            trained.backbone.hashes,
            dataclasses.replace(trained.backbone, encoder=None),
            Path("checkpoint"),
        )


def test_encoder_and_view_are_part_of_the_identity(run: Path) -> None:
    found = loading.load(run)
    assert found.backbone.encoder is not None
    encoder = dataclasses.replace(found.backbone.encoder, sha256="another")
    data = dataclasses.replace(found.settings.data, global_view="crop")
    others = (
        dataclasses.replace(found, backbone=dataclasses.replace(found.backbone, encoder=encoder)),
        dataclasses.replace(found, settings=dataclasses.replace(found.settings, data=data)),
    )
    assert len({bundle.identity(one) for one in (found, *others)}) == 3


def test_gradients_by_pixels_need_the_autoencoder_alone(run: Path) -> None:
    backbone, config = loading.load(run).backbone, loading.load(run).settings.detector
    pixels, keys = jnp.zeros((1, 32, 32, 3)), jax.random.split(jax.random.key(0), 1)
    with pytest.raises(ValueError, match="global encoder"):
        cinemae.pixel_features(backbone, pixels, keys, jnp.zeros((1, 2), int), config)
