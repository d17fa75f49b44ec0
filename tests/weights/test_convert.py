"""Conversion of safetensors sources (without torch): round trips and refusals.

Torch's own formats (.pth, .bin) are tested in tests/parity.
"""

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from cinemae_jax import weights
from cinemae_jax.model.cinemae import extract_features
from cinemae_jax.model.config import DetectorConfig, vit_base, vit_huge, vit_large
from cinemae_jax.model.mae import MAE
from weights_convert import goldens, mapping
from weights_convert.__main__ import main
from weights_convert.convert import convert
from weights_convert.infer import Options
from weights_convert.sources import ConversionError

Tensors = dict[str, np.ndarray]

HUGGINGFACE = goldens.read(goldens.FOLDER / "raw_16_huggingface.safetensors")
FACEBOOK = goldens.read(goldens.FOLDER / "raw_8_facebook.safetensors")
HEADS = {"num_heads": 8, "decoder_num_heads": 4}


def config_json(**changes: Any) -> dict[str, Any]:
    c = HUGGINGFACE.case.config
    entries = {
        "model_type": "vit_mae",
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "intermediate_size": 4 * c.width,
        "decoder_hidden_size": c.decoder_width,
        "decoder_num_hidden_layers": c.decoder_depth,
        "decoder_num_attention_heads": c.decoder_num_heads,
        "decoder_intermediate_size": 4 * c.decoder_width,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "num_channels": 3,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": c.layer_norm_eps,
        "norm_pix_loss": False,
    } | changes
    return {name: value for name, value in entries.items() if value is not None}


def write_folder(folder: Path, tensors: Tensors | None = None, **changes: Any) -> Path:
    """A Hugging Face folder; ``changes`` of config.json, where None removes an entry."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors or HUGGINGFACE.weights), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_json(**changes)))
    return folder


def flat_params(path: Path) -> Tensors:
    return traverse_util.flatten_dict(weights.load(path).params, sep="/")


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def refusal(source: Path, options: Options | None = None) -> str:
    """The message of a refused conversion; checks that nothing was written."""
    out = source.parent / "refused.safetensors"
    with pytest.raises(ConversionError) as caught:
        convert(source, out, options)
    assert not list(source.parent.glob("refused*"))
    return str(caught.value)


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [vit_base, vit_large, vit_huge])
def test_table_fills_every_parameter_once(preset: Callable[[], Any]) -> None:
    config = preset()
    rows = mapping.rows(config.depth, config.decoder_depth)
    targets = [row.target for row in rows]
    assert len(targets) == len(set(targets))
    assert set(targets) == set(weights.expected_shapes(config))
    for layout in ("facebook", "huggingface"):
        used = [name for row in rows for name in row.sources(layout)]
        assert len(used) == len(set(used))


def test_neither_the_table_nor_a_safetensors_conversion_imports_torch(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "vitmae")
    script = (
        "import sys\n"
        "import weights_convert.mapping\n"
        "assert 'torch' not in sys.modules and 'jax' not in sys.modules\n"
        "from weights_convert.__main__ import main\n"
        f"code = main(['convert', {str(folder)!r}, '--out', {str(tmp_path / 'o.safetensors')!r}])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# --- what is converted -------------------------------------------------------------------------


def test_huggingface_round_trip_and_header(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "vitmae")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\ntext\n")
    out = tmp_path / "out.safetensors"
    done = convert(folder, out)
    backbone = weights.load(out)
    assert backbone.config == done.config == HUGGINGFACE.case.config
    assert backbone.sha256 == done.sha256 == weights.file_sha256(out)
    assert_same(flat_params(out), goldens.converted(HUGGINGFACE)[1])
    origin = weights.origin(out)
    assert origin["source"] == "model.safetensors"
    assert origin["source_sha256"] == weights.file_sha256(folder / "model.safetensors")
    assert origin["target"] == "raw"
    assert origin["licence"] == "apache-2.0, as its model card states"
    assert origin["converter"].startswith("weights_convert ")
    assert "width 24, depth 3, num_heads 4" in origin["architecture"]


def in_memory_spelling(name: str) -> str:
    """Names of transformers 5 in memory."""
    for published, new in (
        ("vit.encoder.layer.", "vit.layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ):
        name = name.replace(published, new)
    return name


def saved_spelling(name: str) -> str:
    """Names in files of transformers 5 (``save_pretrained``)."""
    return name.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")


@pytest.mark.parametrize("spelling", [in_memory_spelling, saved_spelling])
def test_other_spellings_of_huggingface_names(
    spelling: Callable[[str], str], tmp_path: Path
) -> None:
    tensors = {spelling(name): value for name, value in HUGGINGFACE.weights.items()}
    assert tensors.keys() != HUGGINGFACE.weights.keys()
    convert(write_folder(tmp_path / "vitmae", tensors), tmp_path / "out.safetensors")
    assert_same(flat_params(tmp_path / "out.safetensors"), goldens.converted(HUGGINGFACE)[1])


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_facebook_layout_as_safetensors(prefix: str, tmp_path: Path) -> None:
    source = tmp_path / "weights.safetensors"
    save_file({prefix + name: value for name, value in FACEBOOK.weights.items()}, source)
    convert(source, tmp_path / "out.safetensors", Options(target="raw", **HEADS))
    backbone = weights.load(tmp_path / "out.safetensors")
    assert backbone.config == FACEBOOK.case.config  # with the original code's epsilon 1e-6
    assert_same(flat_params(tmp_path / "out.safetensors"), goldens.converted(FACEBOOK)[1])
    assert weights.origin(tmp_path / "out.safetensors")["licence"] == "not stated by the source"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32_exactly_and_is_noted(dtype: Any, tmp_path: Path) -> None:
    tensors = {name: value.astype(dtype) for name, value in HUGGINGFACE.weights.items()}
    convert(write_folder(tmp_path / "vitmae", tensors), tmp_path / "out.safetensors")
    found = flat_params(tmp_path / "out.safetensors")
    wanted = goldens.converted(HUGGINGFACE)[1]
    assert_same(found, {k: v.astype(dtype).astype(np.float32) for k, v in wanted.items()})
    origin = weights.origin(tmp_path / "out.safetensors")
    assert origin["source_dtypes"] == np.dtype(dtype).name
    assert "written as float32" in origin["notes"]


@pytest.mark.parametrize(
    ("file_name", "target"),
    [
        ("mae_visualize_vit_large.pth", "raw"),
        ("mae_visualize_vit_large_ganloss.pth", "raw"),
        ("mae_pretrain_vit_base_full.pth", "norm_pix"),
    ],
)
def test_target_and_licence_from_official_names(
    file_name: str, target: str, tmp_path: Path
) -> None:
    source = tmp_path / file_name
    save_file(dict(FACEBOOK.weights), source)
    done = convert(source, tmp_path / "out.safetensors", Options(**HEADS))
    assert done.config.target == target
    assert done.origin["licence"].startswith("CC BY-NC 4.0")


def test_encoder_only(tmp_path: Path) -> None:
    encoder = {k: v for k, v in HUGGINGFACE.weights.items() if k.startswith("vit.")}
    folder = write_folder(tmp_path / "vitmae", encoder)
    assert "holds no decoder" in refusal(folder)
    out = tmp_path / "out.safetensors"
    convert(folder, out, Options(encoder_only=True))
    alone, config = weights.load(out), HUGGINGFACE.case.config
    assert not alone.config.has_decoder
    images = jnp.asarray(HUGGINGFACE.inputs.images, jnp.float32)
    whole = traverse_util.unflatten_dict(goldens.converted(HUGGINGFACE)[1], sep="/")
    wanted = MAE(config).apply({"params": whole}, images, method="encode")
    found = MAE(alone.config).apply({"params": alone.params}, images, method="encode")
    np.testing.assert_array_equal(found, wanted)


def test_an_encoder_serves_detectors_without_masked_runs(tmp_path: Path) -> None:
    encoder = {k: v for k, v in HUGGINGFACE.weights.items() if k.startswith("vit.")}
    out = tmp_path / "out.safetensors"
    convert(write_folder(tmp_path / "vitmae", encoder), out, Options(encoder_only=True))
    backbone = jax.tree.map(jnp.asarray, weights.load(out))
    images = jnp.asarray(HUGGINGFACE.inputs.images)
    keys = jax.random.split(jax.random.key(0), len(images))

    def features(num_runs: int, fusion: str) -> Any:
        runs = jnp.zeros((len(images), num_runs), jnp.int32)
        config = DetectorConfig(num_runs=num_runs, fusion=fusion)
        return extract_features(backbone, images, keys, runs, config)

    assert features(0, "global").f_global.shape == (len(images), backbone.config.width)
    with pytest.raises(ValueError, match="no decoder"):
        features(2, "additive")


def test_the_classifier_of_a_timm_encoder_is_left_out(tmp_path: Path) -> None:
    timm = {k: v for k, v in FACEBOOK.weights.items() if "decoder" not in k and k != "mask_token"}
    timm |= {"head.weight": np.zeros((10, 32), np.float32), "head.bias": np.zeros(10, np.float32)}
    source = tmp_path / "weights.safetensors"
    save_file(timm, source)
    message = refusal(source, Options(num_heads=8))
    assert "holds no decoder" in message
    assert "--encoder-only" in message
    done = convert(source, tmp_path / "o.safetensors", Options(encoder_only=True, num_heads=8))
    assert "classifier left out: head.bias, head.weight" in done.origin["notes"]
    assert done.origin["target"] == "none: encoder only, for K = 0"


# --- what is refused ---------------------------------------------------------------------------


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "vitmae")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "truncated" in refusal(folder)


def test_all_problems_are_listed_together(tmp_path: Path) -> None:
    tensors = dict(HUGGINGFACE.weights)
    tensors["vit.pooler.weight"] = np.zeros((3, 3), np.float32)
    tensors["vit.layernorm.bias"] = np.zeros(7, np.float32)
    del tensors["vit.encoder.layer.1.attention.attention.key.weight"]
    tensors["decoder.decoder_norm.bias"] = np.zeros(16, np.int32)
    message = refusal(write_folder(tmp_path / "vitmae", tensors, num_hidden_layers=12))
    for part in (
        "vit.pooler.weight is unexpected",
        "vit.layernorm.bias (7,) gives encoder_norm/bias the shape (7,)",
        "vit.encoder.layer.1.attention.attention.key.weight is missing",
        "decoder.decoder_norm.bias is I32",
        "config.json says num_hidden_layers 12, expected 3",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"image_size": 224}, "image_size 224, expected 48"),
        ({"qkv_bias": False}, "qkv_bias False"),
        ({"num_attention_heads": 5}, "num_heads 5"),
        ({"num_attention_heads": -4}, "encoder heads"),
        ({"layer_norm_eps": "1e-12"}, "epsilon"),
        ({"patch_size": [16, 8]}, "patch_size [16, 8]"),
        ({"num_attention_heads": None}, "--num-heads"),
        ({"layer_norm_eps": None}, "--layer-norm-eps"),
        ({"norm_pix_loss": None}, "--target raw"),
        ({"model_type": "vit"}, "model_type 'vit'"),
    ],
)
def test_config_that_does_not_fit(changes: dict[str, Any], part: str, tmp_path: Path) -> None:
    assert part in refusal(write_folder(tmp_path / "vitmae", **changes))


def test_contradictory_target_is_refused(tmp_path: Path) -> None:
    message = refusal(write_folder(tmp_path / "vitmae"), Options(target="norm_pix"))
    assert "config.json says raw, --target says norm_pix" in message


def test_unknown_target_is_refused_with_the_reason_and_the_rest(tmp_path: Path) -> None:
    source = tmp_path / "weights.safetensors"
    save_file(FACEBOOK.weights | {"norm.bias": np.zeros(5, np.float32)}, source)
    message = refusal(source)
    assert "--target" in message
    assert "--num-heads" in message
    assert "norm.bias (5,) gives encoder_norm/bias the shape (5,)" in message


def test_square_sizes_may_be_pairs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "vitmae", image_size=[48, 48], patch_size=[16, 16])
    assert convert(folder, tmp_path / "out.safetensors").config == HUGGINGFACE.case.config


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = dict(HUGGINGFACE.weights)
    tensors["vit.layernorm.bias"] = np.full(24, np.nan, np.float32)
    message = refusal(write_folder(tmp_path / "vitmae", tensors))
    assert "vit.layernorm.bias holds NaN" in message


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "resnet.safetensors"
    save_file({"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)}, source)
    assert "holds no MAE" in refusal(source)


def test_folder_without_config_or_tensors_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "vitmae")
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "holds none of" in refusal(folder)
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_torch_file_without_torch_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "mae_visualize_vit_large.pth").write_bytes(b"PK\x03\x04 and so on")
    message = refusal(tmp_path / "mae_visualize_vit_large.pth")
    assert "pip install 'cinemae-jax[parity]'" in message


# --- commands ----------------------------------------------------------------------------------


def test_command_converts_or_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_folder(tmp_path / "vitmae"), tmp_path / "out.safetensors"
    assert main(["convert", str(folder), "--out", str(out)]) == 0
    assert weights.load(out).sha256 in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert main(["convert", "--out", str(out)]) == 2
    assert "SRC or --hub" in capsys.readouterr().err


def test_command_prints_one_problem_per_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "vitmae", hidden_act="relu", qkv_bias=False)
    assert main(["convert", str(folder), "--out", str(tmp_path / "o.safetensors")]) == 2
    first, *problems = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert first.endswith("refused:")
    assert [line.split()[:4] for line in problems] == [
        ["-", "config.json", "says", name] for name in ("hidden_act", "qkv_bias")
    ]


def fake_hub(monkeypatch: pytest.MonkeyPatch, snapshot: Callable[..., str]) -> None:
    hub = types.ModuleType("huggingface_hub")
    hub.list_repo_files = lambda name, revision: ["config.json", "model.safetensors"]  # type: ignore[attr-defined]
    hub.snapshot_download = snapshot  # type: ignore[attr-defined]
    hub.errors = types.SimpleNamespace(HfHubHTTPError=OSError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def test_hub_source_is_named_with_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "0123abc")
    fake_hub(monkeypatch, lambda *args, **kwargs: str(folder))
    out = tmp_path / "out.safetensors"
    assert main(["convert", "--hub", "facebook/vit-mae-large", "--out", str(out)]) == 0
    assert weights.origin(out)["source"] == "facebook/vit-mae-large@0123abc"


def test_hub_without_network_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise OSError("no route to host")

    fake_hub(monkeypatch, fail)
    out = tmp_path / "out.safetensors"
    assert main(["convert", "--hub", "facebook/vit-mae-large", "--out", str(out)]) == 2
    assert "cannot download facebook/vit-mae-large" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
        (b"<!DOCTYPE html>\n<html>", "web page"),
        (b"", "empty"),
    ],
)
def test_failed_downloads_are_named(content: bytes, name: str, tmp_path: Path) -> None:
    for file in ("mae.pth", "mae.safetensors"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(ConversionError, match=f"{file}: .*{name}|{file}: {name}"):
            convert(tmp_path / file, tmp_path / "out.safetensors")
        with pytest.raises(weights.BackboneError, match=name):
            weights.load(tmp_path / file)
