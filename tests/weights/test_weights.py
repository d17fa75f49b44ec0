import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cinemae_jax import weights
from cinemae_jax.model.cinemae import Backbone
from tests.conftest import SMALL


def rewrite(source: Path, target: Path, *, config: object = None, **changes: object) -> Path:
    """A copy of a backbone file with changed tensors (None removes one) or another config."""
    tensors = load_file(source) | changes
    tensors = {k: v for k, v in tensors.items() if v is not None}
    header = {
        "format": weights.FORMAT,
        "config": json.dumps(dataclasses.asdict(config or SMALL)),
    }
    save_file(tensors, target, metadata=header)
    return target


def test_a_saved_backbone_loads_equal_and_keeps_its_origin(
    backbone: Backbone, tmp_path: Path
) -> None:
    path = tmp_path / "b.safetensors"
    digest = weights.save(path, backbone.config, backbone.params, {"licence": "CC0"})
    loaded = weights.load(path)
    assert loaded.config == backbone.config
    assert loaded.sha256 == digest == weights.file_sha256(path)
    assert weights.origin(path) == {"licence": "CC0"}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, dict(backbone.params))


def test_an_encoder_alone_is_a_backbone_without_decoder(backbone: Backbone, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, decoder_depth=0)
    names = weights.expected_shapes(config)
    assert not [n for n in names if "decoder" in n or "mask_token" in n]
    flat = load_file(_saved(backbone, tmp_path))
    path = tmp_path / "encoder.safetensors"
    save_file(
        {n: flat[n] for n in names},
        path,
        metadata={"format": weights.FORMAT, "config": json.dumps(dataclasses.asdict(config))},
    )
    assert not weights.load(path).config.has_decoder


def _saved(backbone: Backbone, folder: Path) -> Path:
    path = folder / "small.safetensors"
    weights.save(path, backbone.config, backbone.params)
    return path


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.float16, np.float64])
def test_other_types_than_float32_are_refused(
    backbone: Backbone, tmp_path: Path, dtype: type
) -> None:
    source = _saved(backbone, tmp_path)
    name, values = next(iter(load_file(source).items()))
    changed = rewrite(source, tmp_path / "typed.safetensors", **{name: values.astype(dtype)})
    with pytest.raises(weights.BackboneError, match=r"typed\.safetensors must hold float32"):
        weights.load(changed)


@pytest.mark.parametrize(
    "sizes",
    [
        {"image_size": 8 * 10**6},
        {"image_size": 4096, "patch_size": 1},
        {"depth": 10**6},
        {"decoder_depth": 10**6},
    ],
)
def test_sizes_in_a_header_are_not_believed(
    backbone: Backbone, tmp_path: Path, sizes: dict[str, int]
) -> None:
    source = _saved(backbone, tmp_path)
    config = dataclasses.replace(SMALL, **sizes)
    path = rewrite(source, tmp_path / "sized.safetensors", config=config)
    with pytest.raises(weights.BackboneError, match=r"sized\.safetensors .*architecture"):
        weights.load(path)


def test_huge_weights_are_named(backbone: Backbone, tmp_path: Path) -> None:
    source = _saved(backbone, tmp_path)
    name, values = next(iter(load_file(source).items()))
    path = rewrite(source, tmp_path / "huge.safetensors", **{name: np.full_like(values, 1e30)})
    with pytest.raises(weights.BackboneError, match=f"huge.safetensors .*{name}"):
        weights.load(path)


def test_a_missing_file_names_the_bundled_ones(tmp_path: Path) -> None:
    with pytest.raises(weights.BackboneError, match=r"nope.safetensors.*tiny"):
        weights.load(tmp_path / "nope.safetensors")


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_truncated_files_are_refused(backbone_file: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(backbone_file.read_bytes()[:size])
    with pytest.raises(weights.BackboneError, match=r"cut.safetensors.*(truncated|empty)"):
        weights.load(path)


def test_foreign_safetensors_point_to_convert(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"vit.embeddings.cls_token": np.zeros((1, 1, 4), np.float32)}, path)
    with pytest.raises(weights.BackboneError, match="cinemae convert"):
        weights.load(path)


def test_all_problems_are_listed_together(backbone_file: Path, tmp_path: Path) -> None:
    path = rewrite(
        backbone_file,
        tmp_path / "odd.safetensors",
        **{
            "mask_token": None,
            "surprise": np.zeros(3, np.float32),
            "cls_token": np.zeros((1, 1, 25), np.float32),
        },
    )
    with pytest.raises(weights.BackboneError) as error:
        weights.load(path)
    for part in ("missing tensors: mask_token", "unexpected tensors: surprise", "cls_token is (1"):
        assert part in str(error.value)


def test_another_shape_than_the_header_says_is_refused(backbone_file: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(SMALL, width=48)
    path = rewrite(backbone_file, tmp_path / "wide.safetensors", config=other)
    with pytest.raises(weights.BackboneError, match="wrong shapes"):
        weights.load(path)


def test_values_that_are_not_finite_are_refused(backbone_file: Path, tmp_path: Path) -> None:
    bad = np.full((1, 1, SMALL.decoder_width), np.nan, np.float32)
    path = rewrite(backbone_file, tmp_path / "nan.safetensors", mask_token=bad)
    with pytest.raises(weights.BackboneError, match=r"NaN.* mask_token"):
        weights.load(path)


def test_saving_parameters_of_another_architecture_is_refused(
    backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(weights.BackboneError, match="wrong shapes"):
        weights.save(tmp_path / "x", dataclasses.replace(SMALL, width=48), backbone.params)
    assert not list(tmp_path.iterdir())
