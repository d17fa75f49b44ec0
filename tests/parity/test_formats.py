"""Torch's own formats: facebookresearch/mae .pth files, pytorch_model.bin, and hostile files."""

import argparse
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util

from cinemae_jax import weights
from cinemae_jax.model import masking
from cinemae_jax.model.config import MAEConfig
from cinemae_jax.model.mae import MAE, normalize_images
from tests.parity.facebook_mae import FacebookMAE
from weights_convert import goldens, stages, verify
from weights_convert.__main__ import main
from weights_convert.convert import convert
from weights_convert.infer import Options
from weights_convert.sources import ConversionError

pytestmark = pytest.mark.parity

CONFIG = MAEConfig(48, 16, 24, 3, 4, 16, 2, 2, target="raw", layer_norm_eps=1e-6)
HEADS = {"num_heads": 4, "decoder_num_heads": 2}
NAME = "mae_visualize_vit_large.pth"


def save(path: Path, state: dict[str, Any], **more: Any) -> Path:
    torch.save({"model": state, **more}, path)
    return path


def refusal(source: Path, options: Options) -> str:
    out = source.parent / "refused.safetensors"
    with pytest.raises(ConversionError) as caught:
        convert(source, out, options)
    assert not list(source.parent.glob("refused*"))
    return str(caught.value)


@pytest.fixture
def facebook() -> FacebookMAE:
    return FacebookMAE(CONFIG).randomize(0)


@pytest.fixture
def pth(facebook: FacebookMAE, tmp_path: Path) -> Path:
    """Like the official files: tensors under ``model``, the run's arguments beside them."""
    args = argparse.Namespace(model="mae_vit_large_patch16", norm_pix_loss=False, lr=1e-3)
    return save(tmp_path / NAME, facebook.state_dict(), args=args, epoch=7)


def test_a_facebook_file_predicts_like_its_own_model(facebook: FacebookMAE, pth: Path) -> None:
    out = pth.with_name("out.safetensors")
    assert convert(pth, out, Options(**HEADS)).config == CONFIG
    inputs = stages.random_inputs(CONFIG, batch=2, num_runs=1)
    visible = masking.from_noise(jnp.asarray(inputs.noise[:, 0]), CONFIG.num_visible(0.75))
    masked = masking.masked_ids(visible, CONFIG.num_patches)
    pixels = normalize_images(jnp.asarray(inputs.images))
    backbone = jax.tree.map(jnp.asarray, weights.load(out))
    ours = MAE(CONFIG).apply({"params": backbone.params}, pixels, visible, masked)
    channels_first = torch.from_numpy(np.array(pixels).transpose(0, 3, 1, 2))
    ids = (torch.from_numpy(np.array(i)).long() for i in (visible, masked))
    theirs = facebook(channels_first, *ids).numpy()
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=5e-6 * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_way_torch_saves(
    wrapped: bool, zipped: bool, facebook: FacebookMAE, tmp_path: Path
) -> None:
    state = facebook.state_dict()
    source = tmp_path / NAME
    torch.save(
        {"model": state} if wrapped else state, source, _use_new_zipfile_serialization=zipped
    )
    convert(source, tmp_path / "out.safetensors", Options(**HEADS))
    params = traverse_util.flatten_dict(weights.load(tmp_path / "out.safetensors").params, sep="/")
    kernel = state["blocks.2.mlp.fc2.weight"].numpy()
    np.testing.assert_array_equal(params["encoder_2/fc2/kernel"], kernel.T)


def test_three_formats_of_one_model_give_the_same_parameters(tmp_path: Path) -> None:
    """Hugging Face safetensors, Hugging Face .bin, facebook .pth."""
    mae = verify.random_vitmae(CONFIG)
    mae.save_pretrained(tmp_path / "folder")
    (tmp_path / "bin").mkdir()
    shutil.copy(tmp_path / "folder" / "config.json", tmp_path / "bin")
    torch.save(mae.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    arrays = {name: value.numpy() for name, value in mae.state_dict().items()}
    state = goldens.published(arrays, CONFIG, "facebook")
    pth = save(tmp_path / NAME, {name: torch.from_numpy(value) for name, value in state.items()})
    sources = [tmp_path / "folder", tmp_path / "bin", pth]
    found = []
    for i, source in enumerate(sources):
        out = tmp_path / f"{i}.safetensors"
        options = Options(**HEADS) if source.is_file() else Options()
        assert convert(source, out, options).config == CONFIG
        found.append(weights.load(out).params)
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, facebook: FacebookMAE, tmp_path: Path) -> None:
    state = {name: value.to(dtype) for name, value in facebook.state_dict().items()}
    done = convert(save(tmp_path / NAME, state), tmp_path / "o.safetensors", Options(**HEADS))
    params = traverse_util.flatten_dict(weights.load(done.path).params, sep="/")
    np.testing.assert_array_equal(
        params["encoder_norm/scale"], state["norm.weight"].float().numpy()
    )
    assert any("written as float32" in note for note in done.notes)


def test_target_from_the_arguments_of_the_run(facebook: FacebookMAE, tmp_path: Path) -> None:
    args = argparse.Namespace(norm_pix_loss=True)
    source = save(tmp_path / "checkpoint-799.pth", facebook.state_dict(), args=args)
    done = convert(source, tmp_path / "out.safetensors", Options(**HEADS))
    assert done.config.target == "norm_pix"
    assert "contradictory" in refusal(
        save(tmp_path / NAME, facebook.state_dict(), args=args), Options(**HEADS)
    )


def test_an_encoder_file_is_refused_with_the_way_out(facebook: FacebookMAE, tmp_path: Path) -> None:
    state = {k: v for k, v in facebook.state_dict().items() if "decoder" not in k}
    del state["mask_token"]
    message = refusal(save(tmp_path / "mae_pretrain_vit_large.pth", state), Options(**HEADS))
    assert "holds no decoder" in message
    assert "mae_visualize_* or *_full file" in message


def test_truncated(pth: Path) -> None:
    for keep in (0.98, 0.5, 0.0001):
        cut = pth.with_name("mae_visualize_vit_base.pth")
        whole = pth.read_bytes()
        cut.write_bytes(whole[: int(len(whole) * keep)])
        assert "may be truncated" in refusal(cut, Options(**HEADS))


class Bomb:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("plain", [True, False])
def test_pickle_bomb_does_not_go_off(plain: bool, facebook: FacebookMAE, tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    content = {"model": facebook.state_dict(), "args": Bomb(crater)}
    source = tmp_path / NAME
    if plain:
        source.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, source)
    message = refusal(source, Options(**HEADS))
    assert not crater.exists()
    assert "would run" in message
    assert main(["convert", str(source), "--out", str(tmp_path / "o.safetensors")]) == 2


def test_not_a_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / NAME)
    assert "holds a list" in refusal(tmp_path / NAME, Options())


def test_entry_that_is_not_a_tensor(facebook: FacebookMAE, tmp_path: Path) -> None:
    state = facebook.state_dict() | {"version": 3}
    assert "version is not a tensor" in refusal(save(tmp_path / NAME, state), Options(**HEADS))
