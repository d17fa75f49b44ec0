"""transformers against JAX for image encoders, live: goldens, published sizes, whole checkpoints.

Bounds are those of docs/weights.md, kept absolutely: the feature and every stage before it.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from cinemae_jax import weights
from cinemae_jax.model import vit
from cinemae_jax.model.vit import ViT, ViTConfig
from weights_convert import encoder_goldens, encoder_mapping, encoders, stages, verify
from weights_convert import encoder_reference as reference
from weights_convert.__main__ import main

pytestmark = pytest.mark.parity

GOLDEN = {name: case.config for name, case in encoder_goldens.CASES.items()}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 60,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def largest(report: verify.Report) -> float:
    """Over all stages, in absolute terms."""
    print(report.table())
    assert not report.failures
    return max(row.absolute for row in report.rows)


@pytest.mark.parametrize("name", sorted(encoder_goldens.CASES))
def test_goldens_are_what_the_reference_gives(name: str, tmp_path: Path) -> None:
    """Another torch may sum in another order; anything else would make the fixtures stale."""
    stored = encoder_goldens.read(encoder_goldens.FOLDER / f"{name}.safetensors")
    case = encoder_goldens.CASES[name]
    fresh = encoder_goldens.read(encoder_goldens.write_one(tmp_path / "g.safetensors", case))
    assert fresh.entries == stored.entries
    assert fresh.tensors.keys() == stored.tensors.keys()
    assert all(np.array_equal(fresh.tensors[k], stored.tensors[k]) for k in stored.tensors)
    np.testing.assert_array_equal(fresh.pixels, stored.pixels)
    assert not [r for r in stages.compare(stored.stages, fresh.stages) if r.exceeds(5e-6)]


@pytest.mark.parametrize(
    "preset",
    ["clip_b16", "dinov2_s14", "dinov2_b14", "dinov2_s14_registers",
     "dinov2_b14_registers", "dinov3_s16", "dinov3_b16", "siglip_b16", "siglip2_b16_naflex"],
)  # fmt: skip
def test_small_and_base_keep_the_bound_absolutely(preset: str, tmp_path: Path) -> None:
    report = reference.verify_random(vit.PRESETS[preset], tmp_path)
    assert report.bound == 1e-5
    assert largest(report) <= 1e-5


def test_patches_of_3072_values_keep_the_bound_in_the_feature(tmp_path: Path) -> None:
    """PyTorch's embedding of them is 9e-6 from float64, ours 3e-6; values reach 7 further on."""
    report = reference.verify_random(vit.PRESETS["clip_b32"], tmp_path)
    assert largest(report) <= 2e-5
    assert report.rows[-1].stage == "feature"
    assert report.rows[-1].absolute <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset", ["clip_l14", "dinov2_l14", "dinov2_l14_registers", "dinov3_l16", "siglip_l16_256"]
)
def test_large_keeps_the_bound_absolutely(preset: str, tmp_path: Path) -> None:
    report = reference.verify_random(vit.PRESETS[preset], tmp_path)
    assert report.bound == 5e-5
    assert largest(report) <= 5e-5


@pytest.mark.parametrize("name", ["clip", "dinov2", "dinov2_registers", "siglip", "siglip2_naflex"])
@pytest.mark.parametrize("size", [(8, 8), (12, 28), (40, 36)])
def test_positions_are_interpolated_to_any_size(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    model = reference.random_model(GOLDEN[name], spread=0.25, tokens=0.25)
    model.save_pretrained(tmp_path / "model")
    done = encoders.convert(tmp_path / "model", tmp_path / "o.safetensors")
    encoder, pixels = weights.load_encoder(done.path), reference.random_pixels(*size)
    rows = stages.compare(
        reference.torch_stages(model, pixels), reference.jax_stages(encoder, pixels)
    )
    assert not [row for row in rows if row.exceeds(5e-6)]


def whole(config: ViTConfig) -> Any:
    """A checkpoint of both towers, as transformers makes it."""
    image = reference.entries(config)
    if config.family == "clip":
        both = transformers.CLIPConfig(
            vision_config=image, text_config=TEXT, projection_dim=config.projection
        )
        return transformers.CLIPModel(both).eval()
    both = transformers.SiglipConfig(vision_config=image, text_config=TEXT)
    return transformers.SiglipModel(both).eval()


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_image_features_of_a_whole_checkpoint(name: str, tmp_path: Path) -> None:
    config = GOLDEN[name]
    model = whole(config)
    model.save_pretrained(tmp_path / "whole")
    done = encoders.convert(tmp_path / "whole", tmp_path / "o.safetensors")
    assert done.config == config
    assert any(note.startswith("text tower left out") for note in done.notes)
    pixels = reference.random_pixels(16, 16)
    with torch.no_grad():
        found = model.get_image_features(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    wanted = getattr(found, "pooler_output", found)  # a tensor before transformers 5
    encoder = weights.load_encoder(done.path)
    ours = reference.jax_stages(encoder, pixels)["feature"]
    np.testing.assert_allclose(ours, wanted.numpy(), atol=5e-6, rtol=0)


def test_bfloat16_is_as_close_to_float32_as_in_pytorch(tmp_path: Path) -> None:
    config = dataclasses.replace(vit.PRESETS["clip_b16"], depth=4)
    model = reference.random_model(config)
    model.save_pretrained(tmp_path / "model")
    done = encoders.convert(tmp_path / "model", tmp_path / "o.safetensors")
    encoder, pixels = weights.load_encoder(done.path), reference.random_pixels(224, 224)
    exact = reference.jax_stages(encoder, pixels)["feature"]
    ours = np.asarray(
        jax.jit(ViT(config, jnp.bfloat16).apply)({"params": encoder.params}, jnp.asarray(pixels))
    )
    theirs = reference.torch_feature(model.to(torch.bfloat16), pixels).float().numpy()
    assert 0 < np.linalg.norm(ours - exact) < 1.5 * np.linalg.norm(theirs - exact)


@pytest.mark.parametrize("model_type", sorted(encoder_mapping.LAYOUTS))
def test_absent_entries_mean_what_transformers_takes_them_for(model_type: str) -> None:
    layout = encoder_mapping.LAYOUTS[model_type]
    defaults = getattr(transformers, reference.CLASSES[model_type]).config_class()
    for name, value in encoders.ABSENT[layout].items():
        assert getattr(defaults, name) == value, name
    for name, value in encoders.MUST[layout].items():
        assert getattr(defaults, name) == value, name
    registers = getattr(defaults, "num_register_tokens", 0)
    assert registers == encoders.REGISTERS.get(model_type, 0)


def test_command_verifies_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, log = tmp_path / "model", tmp_path / "o.safetensors", tmp_path / "log.json"
    reference.random_model(GOLDEN["clip"], spread=0.25).save_pretrained(source)
    assert main(["convert", str(source), "--out", str(out)]) == 0
    command = ["verify", str(source), "--converted", str(out), "--json", str(log)]
    assert main(command) == 0
    assert json.loads(log.read_text())["passed"]
    encoder = weights.load_encoder(out)
    block = encoder.params["block_1"]
    params = encoder.params | {"block_1": block | {"fc1": {
        "kernel": block["fc1"]["kernel"] * 1.01, "bias": block["fc1"]["bias"]
    }}}  # fmt: skip
    weights.save_encoder(out, encoder.config, params, encoder.preprocessing)
    assert main(command) == 1
    above = [row["stage"] for row in json.loads(log.read_text())["stages"] if row["above"]]
    assert above == ["block_1", "norm", "feature"]
    capsys.readouterr()
    assert main([*command, "--target", "raw"]) == 2
    assert "--target" in capsys.readouterr().err
