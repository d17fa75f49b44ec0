"""The JAX detector against stored outputs of the PyTorch reference; planted mistakes must show.

Bound: a float32 rounding is 6e-8 of a value, and the reference itself differs from its float64 twin
by up to 1e-6 of a stage's largest value here.  5e-6 leaves room for another machine's order of
summation; the mildest mistake below moves some stage by more than ten times as much.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cinemae_jax.model import layers, lcas, mae, masking
from cinemae_jax.model.cinemae import Backbone, extract_features
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.training import optim
from weights_convert import goldens, mapping, stages
from weights_convert.goldens import Golden
from weights_convert.sources import ConversionError

BOUND = 5e-6
CLEARLY = 10 * BOUND
NAMES = sorted(goldens.CASES)
Params = dict[str, np.ndarray]


def read(name: str) -> Golden:
    return goldens.read(goldens.FOLDER / f"{name}.safetensors")


def backbone_of(golden: Golden, change: Callable[[Params], Params] = dict) -> Backbone:
    config, params = goldens.converted(golden)
    tree = traverse_util.unflatten_dict(change(params), sep="/")
    return Backbone(jax.tree.map(jnp.asarray, tree), config)


def wrong_stages(golden: Golden, backbone: Backbone, bound: float = CLEARLY) -> list[str]:
    """Stages up to the LCAS terms that differ by more than ``bound``."""
    with jax.default_matmul_precision("highest"):
        _, ours = stages.backbone_stages(backbone, golden.inputs)
    reference = {name: golden.stages[name] for name in ours}
    arrays = {name: np.asarray(value) for name, value in ours.items()}
    return [row.stage for row in stages.compare(reference, arrays) if row.exceeds(bound)]


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_agrees(name: str) -> None:
    golden = read(name)
    rows = stages.compare(golden.stages, stages.jax_stages(backbone_of(golden), golden.inputs))
    assert [row for row in rows if row.exceeds(BOUND)] == []


def test_goldens_cover_what_they_should() -> None:
    configs = [case.config for case in goldens.CASES.values()]
    for field, wanted in {
        "patch_size": {8, 14, 16},
        "target": {"raw", "norm_pix"},
        "layer_norm_eps": {1e-6, 1e-12},
    }.items():
        assert {getattr(c, field) for c in configs} == wanted
    assert len({c.image_size for c in configs}) == len(configs)
    assert any(c.depth % 2 and c.decoder_depth % 2 for c in configs)
    assert {case.layout for case in goldens.CASES.values()} == {"facebook", "huggingface"}
    for name, case in goldens.CASES.items():
        assert read(name).case == case, f"{name} is stale: python -m weights_convert goldens"


def test_extract_features_is_what_the_goldens_check() -> None:
    """The same masks, from noise and from a key, give the same features."""
    golden = read("raw_8_facebook")
    backbone, inputs = backbone_of(golden), golden.inputs
    batch, num_runs, length = inputs.noise.shape
    config = DetectorConfig(num_runs=num_runs)
    keys = masking.example_keys(jax.random.key(3), jnp.arange(batch, dtype=jnp.uint32))
    runs = jnp.broadcast_to(jnp.arange(num_runs), (batch, num_runs))
    noise = [
        [jax.random.uniform(jax.random.fold_in(key, k), (length,)) for k in range(num_runs)]
        for key in keys
    ]
    same = dataclasses.replace(inputs, noise=np.asarray(noise))
    extract = jax.jit(extract_features, static_argnames="config")
    with jax.default_matmul_precision("highest"):
        direct = extract(backbone, jnp.asarray(inputs.images), keys, runs, config=config)
        staged, _ = stages.backbone_stages(backbone, same)
    np.testing.assert_array_equal(direct.masked, staged.masked)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), direct, staged
    )


def test_a_constant_added_to_every_channel_changes_nothing() -> None:
    """LayerNorm removes the mean of a token, so a constant in the residual stream has no effect.

    docs/weights.md.  Rounding the stream at 50 moves the prediction by 2e-4 of its largest value; a
    variance computed as E[x²] - E[x]² would lose the small tokens altogether.
    """
    golden = read("norm_pix_14_facebook")
    shifted = ("cls_token", "patch_embed/bias", "decoder_embed/bias", "mask_token")
    plain, moved = (
        np.asarray(stages.backbone_stages(backbone, golden.inputs)[1]["masked/prediction"])
        for backbone in (
            backbone_of(golden),
            backbone_of(golden, lambda p: p | {name: p[name] + 50 for name in shifted}),
        )
    )
    np.testing.assert_allclose(moved, plain, atol=1e-3 * np.abs(plain).max(), rtol=0)


# --- planted mistakes: each must show ----------------------------------------------------------


def test_tanh_gelu_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "gelu", functools.partial(jax.nn.gelu, approximate=True))
    golden = read("raw_8_facebook")
    assert "global/encoder_0" in wrong_stages(golden, backbone_of(golden))


@pytest.mark.parametrize(
    ("name", "eps"), [("norm_pix_16_huggingface", 1e-6), ("raw_8_facebook", 1e-12)]
)
def test_wrong_layer_norm_eps_shows(name: str, eps: float) -> None:
    golden = read(name)
    right = backbone_of(golden)
    config = dataclasses.replace(right.config, layer_norm_eps=eps)
    assert "global/encoder_0" in wrong_stages(golden, dataclasses.replace(right, config=config))


def test_swapped_query_and_key_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(row: mapping.Row) -> mapping.Row:
        names = row.huggingface
        if len(names) != 3:
            return row
        return dataclasses.replace(row, huggingface=(names[1], names[0], names[2]))

    monkeypatch.setattr(mapping, "TABLE", tuple(map(swapped, mapping.TABLE)))
    golden = read("norm_pix_16_huggingface")
    wrong = wrong_stages(golden, backbone_of(golden))
    assert {"global/encoder_0", "masked/decoder_0"} <= set(wrong)


def test_transposed_square_kernel_shows() -> None:
    """Shape checks cannot see the transposition of these kernels alone."""
    golden = read("raw_8_facebook")
    for block in ("encoder_0", "decoder_1"):
        path = f"{block}/attn/out/kernel"

        def transposed(params: dict[str, Any], path: str = path) -> dict[str, Any]:
            return params | {path: params[path].T}

        backbone = backbone_of(golden, transposed)
        assert f"masked/{block}" in wrong_stages(golden, backbone)


def test_forgotten_transposition_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mapping.TRANSFORMS, "linear", lambda a: a)
    with pytest.raises(ConversionError, match=r"attn\.qkv\.weight"):
        backbone_of(read("raw_8_facebook"))


def test_patch_kernel_in_channel_first_order_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mapping.TRANSFORMS, "conv", lambda a: a.reshape(len(a), -1).T)
    golden = read("raw_8_facebook")
    assert "global/patch_embed" in wrong_stages(golden, backbone_of(golden))


@pytest.mark.parametrize(
    ("table", "stage"),
    [("pos_embed", "global/encoder_0"), ("decoder_pos_embed", "masked/decoder_0")],
)
def test_shifted_position_table_shows(table: str, stage: str) -> None:
    golden = read("raw_8_facebook")
    backbone = backbone_of(golden, lambda p: p | {table: np.roll(p[table], 1, axis=1)})
    assert stage in wrong_stages(golden, backbone)


def test_biased_variance_in_the_target_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(patches: jax.Array, target: str) -> jax.Array:
        mean, var = patches.mean(-1, keepdims=True), patches.var(-1, keepdims=True)
        return (patches - mean) / jnp.sqrt(var + mae.NORM_PIX_EPS)

    monkeypatch.setattr(stages, "to_target", biased)
    golden = read("norm_pix_14_facebook")
    assert {"target", "terms/mismatch"} <= set(wrong_stages(golden, backbone_of(golden)))


def test_a_normalised_target_taken_for_raw_shows() -> None:
    golden = read("norm_pix_16_huggingface")
    right = backbone_of(golden)
    wrong = dataclasses.replace(right, config=dataclasses.replace(right.config, target="raw"))
    assert "target" in wrong_stages(golden, wrong)


def test_weight_decay_of_everything_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = read("norm_pix_16_huggingface")
    backbone = backbone_of(golden)
    monkeypatch.setattr(optim, "kernels", lambda params: jax.tree.map(lambda _: True, params))
    ours = stages.jax_stages(backbone, golden.inputs)
    wrong = [r.stage for r in stages.compare(golden.stages, ours) if r.exceeds(CLEARLY)]
    assert "trained/global_classifier/bias" in wrong
    assert not [stage for stage in wrong if not stage.startswith("trained")]


def test_the_least_textured_half_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = read("raw_8_facebook")
    right = lcas.most_textured
    monkeypatch.setattr(lcas, "most_textured", lambda v, share: right(-v, share))
    features, _ = stages.backbone_stages(backbone_of(golden), golden.inputs)
    with jax.disable_jit():  # the right program may be compiled already
        found = stages._statistics_stages(features, golden.case.config)
    ours = {name: np.asarray(value) for name, value in found.items()}
    reference = {name: golden.stages[name] for name in ours}
    wrong = [r.stage for r in stages.compare(reference, ours) if r.exceeds(CLEARLY)]
    assert "statistics/relative/run/0.5" in wrong
    assert all(stage.endswith("/0.5") for stage in wrong)


def test_strata_from_the_wrong_end_show(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = read("raw_8_facebook")
    right = masking.one_per_stratum
    monkeypatch.setattr(masking, "one_per_stratum", lambda t, *a, **k: right(t.max() - t, *a, **k))
    ours = {
        n: np.asarray(v) for n, v in stages.mask_stages(golden.case.config, golden.inputs).items()
    }
    rows = stages.compare({name: golden.stages[name] for name in ours}, ours)
    assert [row.stage for row in rows if row.exceeds(CLEARLY)] == ["masks/stratified"]
