"""Image encoders: goldens of transformers, mutations that must show, conversion, refusals.

Needs no torch.  The bound is that of tests/weights/test_goldens.py, for the same reason.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cinemae_jax import weights
from cinemae_jax.model import vit
from cinemae_jax.model.vit import Encoder
from weights_convert import encoder_goldens, encoder_mapping, encoders, preprocessing, stages
from weights_convert.__main__ import main
from weights_convert.encoder_goldens import Golden
from weights_convert.encoder_reference import jax_stages
from weights_convert.sources import ConversionError

BOUND = 5e-6
CLEARLY = 20 * BOUND
NAMES = sorted(encoder_goldens.CASES)
Params = dict[str, np.ndarray]

CLIP_PREPROCESSOR = {
    "do_center_crop": True,
    "crop_size": {"height": 16, "width": 16},
    "size": {"shortest_edge": 20},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 3,
}


def read(name: str) -> Golden:
    return encoder_goldens.read(encoder_goldens.FOLDER / f"{name}.safetensors")


def write(name: str, folder: Path, tensors: Params | None = None, **entries: Any) -> Path:
    """A golden as a repository; ``tensors`` replace or add, entries of config.json change."""
    golden = read(name)
    changed = dataclasses.replace(golden, tensors={**golden.tensors, **(tensors or {})})
    return changed.write_folder(folder, **entries)


def converted(name: str, folder: Path) -> Encoder:
    done = encoders.convert(write(name, folder / "source"), folder / "encoder.safetensors")
    return weights.load_encoder(done.path)


def changed(encoder: Encoder, change: Callable[[Params], Params]) -> Encoder:
    flat = traverse_util.flatten_dict(encoder.params, sep="/")
    return dataclasses.replace(
        encoder, params=traverse_util.unflatten_dict(flat | change(flat), sep="/")
    )


def wrong_stages(name: str, encoder: Encoder, bound: float = CLEARLY) -> list[str]:
    golden = read(name)
    rows = stages.compare(golden.stages, jax_stages(encoder, golden.pixels))
    return [row.stage for row in rows if row.exceeds(bound)]


def refusal(source: Path) -> str:
    """The message of a refused conversion, which must have written nothing."""
    out = source.parent / "refused.safetensors"
    with pytest.raises(ConversionError) as caught:
        encoders.convert(source, out)
    assert not list(source.parent.glob("refused*"))
    return str(caught.value)


# --- goldens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_agrees(name: str, tmp_path: Path) -> None:
    encoder = converted(name, tmp_path)
    assert encoder.config == encoder_goldens.CASES[name].config, "stale: make goldens"
    assert wrong_stages(name, encoder, BOUND) == []


def test_goldens_cover_what_they_should() -> None:
    cases = encoder_goldens.CASES.values()
    assert {c.config.family for c in cases} == {p.family for p in vit.PRESETS.values()}
    for field in ("activation", "resampling"):
        used = {getattr(c.config, field) for c in cases}
        assert used == {getattr(p, field) for p in vit.PRESETS.values()}
    assert any(height != width for height, width in (c.size for c in cases))


# --- mutations: each must be seen in the feature ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("clip", {"activation": "gelu"}),
        ("siglip", {"activation": "gelu"}),
        ("dinov2", {"activation": "tanh_gelu"}),
        ("dinov2", {"resampling": "bicubic_antialias"}),
        ("dinov2_registers", {"resampling": "bicubic"}),
        ("siglip2_naflex", {"resampling": "bicubic_antialias"}),
        ("dinov3", {"rope_theta": 10000.0}),
        ("clip", {"num_heads": 4}),
    ],
)
def test_a_wrong_config_shows(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    right = converted(name, tmp_path)
    config = dataclasses.replace(right.config, **changes)
    assert "feature" in wrong_stages(name, dataclasses.replace(right, config=config))


def of_blocks(part: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Params], Params]:
    return lambda params: {k: change(v) for k, v in params.items() if k.endswith(part)}


def register_first(params: Params) -> Params:
    """The class token behind the first register."""
    token, registers = params["cls_token"], params["registers"]
    return {"cls_token": registers[:1], "registers": np.concatenate([token, registers[1:]])}


MUTATIONS: dict[str, tuple[str, Callable[[Params], Params]]] = {
    "LayerScale left out": ("dinov2", of_blocks("scale1", np.ones_like)),
    "second LayerScale left out": ("dinov3", of_blocks("scale2", np.ones_like)),
    "register before the class token": ("dinov2_registers", register_first),
    "register before the class token, RoPE": ("dinov3", register_first),
    "registers left empty": ("dinov3", of_blocks("registers", np.zeros_like)),
    "positions shifted": ("siglip", of_blocks("pos_embed", lambda a: np.roll(a, 1, axis=0))),
    "output transposed": ("clip", of_blocks("attn/out/kernel", np.transpose)),
    "query and key swapped": (
        "dinov3",
        of_blocks(
            "attn/qkv/kernel", lambda a: np.concatenate([a[:, 16:32], a[:, :16], a[:, 32:]], 1)
        ),
    ),
    "query and value of the pool swapped": (
        "siglip",
        of_blocks(
            "pool/qkv_kernel", lambda a: np.concatenate([a[:, 32:], a[:, 16:32], a[:, :16]], 1)
        ),
    ),
    "no LayerNorm before the blocks": ("clip", of_blocks("pre_norm/scale", lambda a: a * 0.1)),
}


@pytest.mark.parametrize("mutation", sorted(MUTATIONS))
def test_a_mutated_parameter_shows(mutation: str, tmp_path: Path) -> None:
    name, change = MUTATIONS[mutation]
    assert "feature" in wrong_stages(name, changed(converted(name, tmp_path), change))


def test_rope_with_rows_and_columns_swapped_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in the order of the patches' axes and in the halves of the channels."""
    encoder, angles = converted("dinov3", tmp_path), vit.rope_angles
    monkeypatch.setattr(vit, "rope_angles", lambda c, rows, columns: angles(c, columns, rows))
    assert "feature" in wrong_stages("dinov3", encoder)
    monkeypatch.setattr(vit, "rope_angles", lambda *sizes: np.roll(angles(*sizes), 2, axis=1))
    assert "feature" in wrong_stages("dinov3", encoder)


def test_rope_that_turns_the_registers_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the registers stood behind the patches."""
    encoder, angles = converted("dinov3", tmp_path), vit.rope_angles
    monkeypatch.setattr(vit, "rope_angles", lambda c, *n: np.roll(angles(c, *n), -3, axis=0))
    assert "feature" in wrong_stages("dinov3", encoder)


def test_positions_interpolated_with_rows_and_columns_swapped_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = converted("dinov2", tmp_path)
    transposed = changed(
        encoder,
        lambda p: {
            "pos_embed": np.concatenate(
                [
                    p["pos_embed"][:1],
                    p["pos_embed"][1:].reshape(7, 7, -1).swapaxes(0, 1).reshape(49, -1),
                ]
            )
        },
    )
    assert {"embed", "feature"} <= set(wrong_stages("dinov2", transposed))
    resize = vit.resize_matrix
    monkeypatch.setattr(vit, "resize_matrix", lambda *a: np.roll(resize(*a), 1, axis=1))
    assert {"embed", "feature"} <= set(wrong_stages("dinov2", encoder))


def test_wrong_layer_norm_eps_shows(tmp_path: Path) -> None:
    for name, eps in (("dinov2", 1e-5), ("dinov3", 1e-6), ("siglip", 1e-5)):
        right = converted(name, tmp_path / name)
        config = dataclasses.replace(right.config, layer_norm_eps=eps)
        assert "block_0" in wrong_stages(
            name, dataclasses.replace(right, config=config), 10 * BOUND
        )


# --- what is converted --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_used_once(name: str, tmp_path: Path) -> None:
    """Every value of the source is in the output, and nothing else but zeros for absent biases."""
    encoder = converted(name, tmp_path)
    kept = {k: v for k, v in read(name).tensors.items() if not k.endswith("mask_token")}
    given = np.sort(np.concatenate([v.ravel() for v in kept.values()]))
    written = [v.ravel() for v in traverse_util.flatten_dict(encoder.params).values()]
    found = np.sort(np.concatenate(written))
    np.testing.assert_array_equal(found[found != 0], given[given != 0])
    layout = encoder_mapping.LAYOUTS[read(name).entries["model_type"]]
    assert {encoder_mapping.published_name(k, layout) for k in kept} == {
        n
        for row in encoder_mapping.rows(layout, 2, registers=encoder.config.num_registers > 0)
        for n in row.huggingface
    }


def test_the_header_says_what_it_is_and_where_it_comes_from(tmp_path: Path) -> None:
    folder = write("clip", tmp_path / "clip")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: some-licence\n---\n")
    (folder / preprocessing.FILE).write_text(json.dumps(CLIP_PREPROCESSOR))
    out = tmp_path / "out.safetensors"
    done = encoders.convert(folder, out)
    encoder, origin = weights.load_encoder(out), weights.origin(out)
    assert encoder.sha256 == done.sha256 == weights.file_sha256(out)
    assert encoder.preprocessing == vit.Preprocessing(
        (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), size=16, shortest_edge=20, interpolation="bicubic"
    )
    assert origin["family"] == "clip"
    assert origin["source_sha256"] == weights.file_sha256(folder / "model.safetensors")
    assert origin["licence"].startswith("some-licence")
    assert "width 16, depth 2" in origin["architecture"]
    assert "shortest_edge 20" in origin["preprocessing"]


TEXT_TOWER = {
    "text_model.embeddings.token_embedding.weight": np.ones((9, 4), np.float32),
    "text_model.embeddings.position_ids": np.arange(7)[None],
    "text_projection.weight": np.ones((6, 4), np.float32),
    "logit_scale": np.full((), 2.0, np.float32),
    "vision_model.embeddings.position_ids": np.arange(17)[None],
}


def test_the_text_tower_is_left_out_by_name(tmp_path: Path) -> None:
    """With the nested config.json of a whole checkpoint, as CLIP's repositories have it."""
    alone = converted("clip", tmp_path)
    entries = read("clip").entries
    whole = dataclasses.replace(
        read("clip"),
        tensors=read("clip").tensors | TEXT_TOWER,
        entries={"model_type": "clip", "projection_dim": 6, "vision_config": entries,
                 "text_config": {"hidden_size": 4}},
    ).write_folder(tmp_path / "whole")  # fmt: skip
    done = encoders.convert(whole, tmp_path / "whole.safetensors")
    encoder = weights.load_encoder(done.path)
    assert encoder.config == alone.config
    same = traverse_util.flatten_dict(alone.params)
    for name, value in traverse_util.flatten_dict(encoder.params).items():
        np.testing.assert_array_equal(value, same[name])
    assert "text tower left out (3 tensors)" in done.origin["notes"]


def test_entries_that_config_json_leaves_out_are_the_defaults_of_the_format(tmp_path: Path) -> None:
    """SigLIP's repositories say almost nothing; twelve heads do not fit this small width."""
    golden = read("siglip")
    folder = dataclasses.replace(golden, entries={
        "model_type": "siglip", "vision_config": {"num_attention_heads": 2}
    }).write_folder(tmp_path / "siglip")  # fmt: skip
    done = encoders.convert(folder, tmp_path / "o.safetensors")
    assert done.config == encoder_goldens.CASES["siglip"].config


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly_and_noted(dtype: Any, tmp_path: Path) -> None:
    tensors = {k: v.astype(dtype) for k, v in read("dinov2").tensors.items()}
    done = encoders.convert(write("dinov2", tmp_path / "half", tensors), tmp_path / "o.safetensors")
    found = traverse_util.flatten_dict(weights.load_encoder(done.path).params, sep="/")
    wanted = tensors["layernorm.weight"].astype(np.float32)
    np.testing.assert_array_equal(found["norm/scale"], wanted)
    assert any("written as float32" in note for note in done.notes)


SPELLINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "clip": (("vision_model.", ""),),
    "siglip": (("vision_model.", ""),),
    "dinov2": ((".attention.attention.query", ".attention.q_proj"),
               (".attention.output.dense", ".attention.o_proj")),
    "dinov3": (("layer.", "model.layer."),),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SPELLINGS))
def test_other_spellings_of_names(name: str, tmp_path: Path) -> None:
    golden = read(name)
    tensors = {}
    for published, value in golden.tensors.items():
        spelled = published
        for old, new in SPELLINGS[name]:
            spelled = spelled.replace(old, new)
        tensors[spelled] = value
    assert tensors.keys() != golden.tensors.keys()
    folder = dataclasses.replace(golden, tensors=tensors).write_folder(tmp_path / "spelled")
    done = encoders.convert(folder, tmp_path / "o.safetensors")
    assert wrong_stages(name, weights.load_encoder(done.path), BOUND) == []


# --- preprocessing ------------------------------------------------------------------------------


def parsed(folder: Path, name: str = "siglip", **entries: Any) -> vit.Preprocessing:
    folder = write(name, folder / "source")
    config = {k: v for k, v in {**CLIP_PREPROCESSOR, **entries}.items() if v is not None}
    (folder / preprocessing.FILE).write_text(json.dumps(config))
    return weights.load_encoder(encoders.convert(folder, folder / "o").path).preprocessing


@pytest.mark.parametrize(
    ("entries", "size", "edge"),
    [
        ({}, 16, 20),
        ({"size": 20, "crop_size": 16}, 16, 20),  # transformers before 4.25
        ({"size": {"height": 24, "width": 24}, "crop_size": None, "do_center_crop": None}, 24, 0),
        ({"size": {"height": 24, "width": 24}, "do_center_crop": False}, 24, 0),
        ({"size": None, "crop_size": None, "max_num_patches": 16, "patch_size": 4}, 16, 0),
    ],
)
def test_sizes_of_the_preprocessor(
    entries: dict[str, Any], size: int, edge: int, tmp_path: Path
) -> None:
    found = parsed(tmp_path, **entries)
    assert (found.size, found.shortest_edge) == (size, edge)


def test_without_a_preprocessor_the_published_one_is_noted(tmp_path: Path) -> None:
    done = encoders.convert(write("siglip", tmp_path / "s"), tmp_path / "o.safetensors")
    assert weights.load_encoder(done.path).preprocessing.mean == (0.5, 0.5, 0.5)
    assert preprocessing.FILE in done.origin["notes"]


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"do_normalize": False}, "do_normalize"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std"),
        ({"image_mean": None}, "image_mean"),
        ({"resample": "bicubic"}, "resample"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"crop_size": {"height": 16, "width": 20}}, "crop_size"),
        ({"crop_size": {"height": 18, "width": 18}}, "write 16 or 20"),
    ],
)
def test_preprocessors_that_are_refused(
    entries: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=named):
        parsed(tmp_path, **entries)


# --- what is refused ----------------------------------------------------------------------------


def test_text_only_files_are_refused(tmp_path: Path) -> None:
    golden = dataclasses.replace(read("clip"), tensors=TEXT_TOWER)
    message = refusal(golden.write_folder(tmp_path / "text", model_type="clip"))
    assert "no image tower" in message
    assert "text tower" in message
    message = refusal(write("clip", tmp_path / "alone", model_type="clip_text_model"))
    assert "clip_text_model" in message
    assert "text tower" in message


def test_a_file_without_image_tower_is_refused(tmp_path: Path) -> None:
    nothing = {"classifier.weight": np.ones((2, 2), np.float32)}
    golden = dataclasses.replace(read("dinov2"), tensors=nothing)
    assert "no image tower" in refusal(golden.write_folder(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "model_type", "found"),
    [
        ("clip", "siglip_vision_model", "clip"),
        ("siglip", "clip_vision_model", "siglip"),
        ("dinov2", "dinov3_vit", "dinov2"),
        ("dinov3", "dinov2", "dinov3"),
        ("clip", "dinov2", "clip"),
    ],
)
def test_the_wrong_family_in_the_config_is_refused(
    name: str, model_type: str, found: str, tmp_path: Path
) -> None:
    message = refusal(write(name, tmp_path / name, model_type=model_type))
    assert f"config.json says {model_type}" in message
    assert f"those of {found}" in message


def test_dinov2_with_and_without_registers_are_told_apart(tmp_path: Path) -> None:
    """They interpolate positions differently, so a config of the other is a refusal."""
    message = refusal(write("dinov2_registers", tmp_path / "a", model_type="dinov2",
                            num_register_tokens=0))  # fmt: skip
    assert "num_register_tokens" in message
    message = refusal(write("dinov2", tmp_path / "b", model_type="dinov2_with_registers"))
    assert "num_register_tokens" in message


def test_quantised_files_are_refused(tmp_path: Path) -> None:
    name = "encoder.layer.0.mlp.fc1.weight"
    tensors = {name: np.ones((48, 16), np.int8)}
    message = refusal(write("dinov2", tmp_path / "int8", tensors))
    assert f"{name} is I8" in message
    assert "float16" in message
    config = {"quant_method": "bitsandbytes"}
    message = refusal(write("dinov2", tmp_path / "config", quantization_config=config))
    assert "quantization_config" in message


def test_image_sizes_that_patches_do_not_divide_are_refused(tmp_path: Path) -> None:
    message = refusal(write("siglip", tmp_path / "siglip", image_size=18))
    assert "image_size 18" in message
    assert "16 pixels" in message


def test_all_problems_are_listed_together(tmp_path: Path) -> None:
    tensors = {
        "surprise": np.ones(3, np.float32),
        "layernorm.bias": np.ones(7, np.float32),
        "encoder.layer.0.norm1.weight": np.ones(16, np.int8),
    }
    folder = write("dinov2", tmp_path / "odd", tensors, hidden_size=32, hidden_act="relu")
    kept = load_file(folder / "model.safetensors")
    del kept["encoder.layer.1.attention.attention.key.weight"]
    save_file(kept, folder / "model.safetensors")
    message = refusal(folder)
    for part in (
        "surprise has no place",
        "layernorm.bias (7,) gives norm/bias the shape (7,)",
        "encoder.layer.0.norm1.weight is I8",
        "encoder.layer.1.attention.attention.key.weight is missing",
        "hidden_size 32, the tensors 16",
        "hidden_act 'relu'",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("name", "entries", "part"),
    [
        ("dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn"),
        ("dinov3", {"use_gated_mlp": True}, "use_gated_mlp"),
        ("siglip", {"vision_use_head": False}, "vision_use_head"),
        ("clip", {"projection_dim": 8}, "projection_dim 8, the tensors 6"),
        ("clip", {"patch_size": 8}, "patch_size 8, the tensors 4"),
        ("clip", {"num_attention_heads": 3}, "num_heads 3"),
        ("clip", {"num_attention_heads": None}, "no architecture"),
        ("dinov2", {"mlp_ratio": 4}, "mlp_ratio 4"),
    ],
)
def test_config_that_does_not_fit(
    name: str, entries: dict[str, Any], part: str, tmp_path: Path
) -> None:
    assert part in refusal(write(name, tmp_path / "source", **entries))


def test_clip_without_projection_is_refused(tmp_path: Path) -> None:
    tensors = {k: v for k, v in read("clip").tensors.items() if k != "visual_projection.weight"}
    folder = dataclasses.replace(read("clip"), tensors=tensors).write_folder(tmp_path / "clip")
    assert "CLIPVisionModelWithProjection" in refusal(folder)


def test_names_of_two_releases_at_once_are_refused(tmp_path: Path) -> None:
    double = {"encoder.layer.0.attention.q_proj.bias": np.ones(16, np.float32)}
    assert "twice" in refusal(write("dinov2", tmp_path / "double", double))


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = {"norm.bias": np.full(16, np.nan, np.float32)}
    assert "norm.bias holds NaN" in refusal(write("dinov3", tmp_path / "nan", tensors))


# --- files and commands -------------------------------------------------------------------------


def test_encoders_and_backbones_are_not_taken_for_each_other(
    backbone_file: Path, tmp_path: Path
) -> None:
    converted("clip", tmp_path)
    with pytest.raises(weights.BackboneError, match="name a masked autoencoder"):
        weights.load(tmp_path / "encoder.safetensors")
    with pytest.raises(weights.BackboneError, match="name an encoder"):
        weights.load_encoder(backbone_file)
    with pytest.raises(weights.BackboneError, match="does not exist"):
        weights.load_encoder(tmp_path / "nowhere")
    with pytest.raises(weights.BackboneError, match="cinemae convert"):
        weights.load_encoder(tmp_path / "source" / "model.safetensors")


def test_an_encoder_file_without_preprocessing_is_refused(tmp_path: Path) -> None:
    encoder = converted("clip", tmp_path)
    header = {
        "format": weights.ENCODER_FORMAT,
        "config": json.dumps(dataclasses.asdict(encoder.config)),
    }
    flat = traverse_util.flatten_dict(encoder.params, sep="/")
    save_file(flat, tmp_path / "bare.safetensors", metadata=header)
    with pytest.raises(weights.BackboneError, match="preprocessing"):
        weights.load_encoder(tmp_path / "bare.safetensors")


def test_command_converts_or_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write("dinov2", tmp_path / "dinov2"), tmp_path / "out.safetensors"
    assert main(["convert", str(folder), "--out", str(out)]) == 0
    assert weights.load_encoder(out).sha256 in capsys.readouterr().out
    assert main(["convert", str(folder / "model.safetensors"), "--out", str(out)]) == 0
    assert main(["convert", str(folder), "--out", str(out), "--target", "raw"]) == 2
    assert "--target" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert main(["convert", str(folder / "model.safetensors"), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "named as those of dinov2" in said
    assert "config.json" in said


# --- parts of an encoder ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_feature_after_some_blocks_is_the_class_token_there(name: str, tmp_path: Path) -> None:
    whole = converted(name, tmp_path)
    done = encoders.convert(tmp_path / "source", tmp_path / "cut.safetensors", blocks=1)
    cut = weights.load_encoder(done.path)
    assert cut.config.depth == 1
    assert not cut.params.keys() & {"norm", "projection", "pool", "block_1"}
    assert done.origin["blocks"].startswith("the first 1 of")
    pixels = read(name).pixels
    tokens = jax_stages(whole, pixels)["block_0"]
    expected = tokens[:, 0] if whole.config.has_class_token else tokens.mean(axis=1)
    np.testing.assert_allclose(jax_stages(cut, pixels)["feature"], expected, atol=1e-6)


def test_more_blocks_than_there_are_are_refused(tmp_path: Path) -> None:
    source = write(NAMES[0], tmp_path / "source")
    with pytest.raises(ConversionError, match=r"blocks must lie in \[1, \d+\], is 99"):
        encoders.convert(source, tmp_path / "cut.safetensors", blocks=99)


def wide_encoder(path: Path, bits: Any) -> Encoder:
    """An encoder whose kernels have whole groups of inputs."""
    config = dataclasses.replace(vit.PRESETS["clip_b16"], width=64, depth=2, num_heads=2)
    config = dataclasses.replace(config, mlp_width=128, projection=16, image_size=32)
    params = vit.initial_variables(config, jax.random.key(0))["params"]
    fed = vit.Preprocessing((0.5,) * 3, (0.5,) * 3, 32, 32, "bicubic")
    weights.save_encoder(path, config, params, fed, bits=bits)
    return weights.load_encoder(path)


def test_few_bits_change_only_kernels_of_blocks_and_little(tmp_path: Path) -> None:
    files = {bits: tmp_path / f"{bits}.safetensors" for bits in (None, 4, 8)}
    found = {bits: wide_encoder(path, bits) for bits, path in files.items()}
    flat = {b: traverse_util.flatten_dict(e.params, sep="/") for b, e in found.items()}
    for bits, most in ((4, 0.11), (8, 0.008)):
        assert flat[bits].keys() == flat[None].keys()
        for name, exact in flat[None].items():
            error = np.sqrt(((flat[bits][name] - exact) ** 2).mean())
            if name.startswith("block_") and name.endswith("kernel"):
                assert 0 < error < most * exact.std(), name
            else:
                assert error == 0, name
    sizes = [files[bits].stat().st_size for bits in (4, 8, None)]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("spoilt", ["codes", "cut codes", "scales", "bits"])
def test_a_file_in_few_bits_that_does_not_fit_is_refused(spoilt: str, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    wide_encoder(path, 4)
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as file:
        header = dict(file.metadata())
    name = "block_0/fc1/kernel#"
    match spoilt:
        case "codes":
            del tensors[name + "codes"]
        case "cut codes":
            tensors[name + "codes"] = tensors[name + "codes"][:-9].copy()
        case "scales":
            tensors[name + "scales"] = tensors[name + "scales"][:, 1:].copy()
        case "bits":
            header["bits"] = "3"
    save_file(tensors, path, metadata=header)
    with pytest.raises(weights.BackboneError, match="bits" if spoilt == "bits" else "fc1/kernel"):
        weights.load_encoder(path)
