"""LCAS and statistics against method.md 3, 4, written out as plain loops in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinemae_jax.model import lcas
from cinemae_jax.model.config import SCORES, Score, Sensitivity

K, L, N, D, C = 3, 16, 4, 12, 3
EPS = 1e-6


def transcription(patches: np.ndarray, predictions: np.ndarray, visible: np.ndarray) -> dict:
    """method.md 3 in float64, one patch and one value at a time."""
    x = patches.astype(np.float64)
    pixels = np.array([x[i][j : j + C] for i in visible for j in range(0, D, C)])
    mean = [sum(pixels[:, c]) / len(pixels) for c in range(C)]
    var = [sum((pixels[:, c] - mean[c]) ** 2) / len(pixels) for c in range(C)]
    masked = [i for i in range(L) if i not in visible]

    def deviation(values: np.ndarray) -> float:
        return sum((values[j] - mean[j % C]) ** 2 / (var[j % C] + EPS) for j in range(D)) / D

    p = predictions.astype(np.float64)
    return {
        "deviation": [deviation(x[i]) for i in masked],
        "reconstruction_deviation": [deviation(p[n]) for n in range(len(masked))],
        "mismatch": [
            sum((x[i][j] - p[n][j]) ** 2 for j in range(D)) / D for n, i in enumerate(masked)
        ],
        "patch_variance": [
            sum((x[i][j] - sum(x[i]) / D) ** 2 for j in range(D)) / D for i in masked
        ],
        "context_variance": var,
    }


def scores_by_hand(t: dict, variant: str, weight: float) -> np.ndarray:
    d, dr, r, v = (
        np.array(t[k])
        for k in ("deviation", "reconstruction_deviation", "mismatch", "patch_variance")
    )
    s2 = np.mean(t["context_variance"])
    log_determinant = sum(np.log(s + EPS) for s in t["context_variance"]) / C
    return {
        "context_nll": 0.5 * (d + log_determinant) + weight * r,
        "log_variance": np.full(len(d), log_determinant),
        "deviation_plus_mismatch": d + weight * r,
        "mismatch": r,
        "reconstruction_deviation": dr + weight * r,
        "conditional_nll": 0.5 * (np.log(s2 + EPS) + r / (s2 + EPS)),
        "relative": np.log(r + EPS) - np.log(v + EPS),
    }[variant]


@pytest.fixture(scope="module")
def case() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    visible = np.stack([rng.permutation(L)[:N] for _ in range(K)]).astype(np.int32)
    return {
        "patches": rng.normal(0.3, 1.5, (L, D)).astype(np.float32),
        "predictions": rng.normal(0, 1, (K, L - N, D)).astype(np.float32),
        "visible": visible,
        "masked": np.stack([np.setdiff1d(np.arange(L), v) for v in visible]).astype(np.int32),
    }


def terms_of(case: dict[str, np.ndarray]) -> lcas.Terms:
    jitted = jax.jit(jax.vmap(lcas.run_terms, in_axes=(None, 0, 0, 0)))
    names = ("patches", "predictions", "visible", "masked")
    return jitted(*(jnp.array(case[n]) for n in names))


def test_terms_equal_the_transcription(case: dict[str, np.ndarray]) -> None:
    terms = terms_of(case)
    for k in range(K):
        expected = transcription(case["patches"], case["predictions"][k], case["visible"][k])
        for name, values in expected.items():
            # float32 sums of a dozen terms: a few units in the seventh digit
            np.testing.assert_allclose(getattr(terms, name)[k], values, rtol=3e-6, err_msg=name)


@pytest.mark.parametrize("variant", SCORES)
def test_scores_and_statistics_equal_the_transcription(
    case: dict[str, np.ndarray], variant: Score
) -> None:
    weight = 0.7
    expected = np.stack(
        [
            scores_by_hand(
                transcription(case["patches"], case["predictions"][k], case["visible"][k]),
                variant,
                weight,
            )
            for k in range(K)
        ]
    )
    scores = lcas.score(terms_of(case), variant, weight)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=2e-6)
    s1 = np.sqrt(np.mean((expected - expected.mean()) ** 2))
    runs = [np.mean(row) for row in expected]
    s3 = np.sqrt(np.mean([(m - np.mean(runs)) ** 2 for m in runs]))
    np.testing.assert_allclose(
        lcas.summarize(scores), [s1, expected.mean(), s3], rtol=1e-4, atol=2e-6
    )


def test_patch_sensitivity_compares_patches_masked_in_both_runs(
    case: dict[str, np.ndarray],
) -> None:
    scores = np.random.default_rng(1).random((K, L - N)).astype(np.float32)
    pairs = []
    for a in range(K):
        for b in range(a + 1, K):
            common = sorted(set(case["masked"][a]) & set(case["masked"][b]))
            pairs.append(
                np.mean(
                    [
                        abs(
                            float(scores[a][list(case["masked"][a]).index(i)])
                            - float(scores[b][list(case["masked"][b]).index(i)])
                        )
                        for i in common
                    ]
                )
            )
    summary = lcas.summarize(
        jnp.array(scores), sensitivity="patch", masked=jnp.array(case["masked"]), num_patches=L
    )
    np.testing.assert_allclose(summary[2], np.mean(pairs), rtol=1e-5)


@pytest.mark.parametrize("sensitivity", ["run", "patch"])
def test_one_run_has_no_sensitivity(sensitivity: Sensitivity) -> None:
    scores, masked = jnp.arange(4.0)[None], jnp.arange(4)[None]
    summary = lcas.summarize(scores, sensitivity=sensitivity, masked=masked, num_patches=5)
    assert summary[2] == 0
    assert summary[0] > 0


def test_terms_do_not_leak_into_each_other(case: dict[str, np.ndarray]) -> None:
    """D does not depend on the prediction, nor R on the context (method.md 3)."""
    before = terms_of(case)
    other_prediction = terms_of(case | {"predictions": case["predictions"] + 1})
    np.testing.assert_array_equal(before.deviation, other_prediction.deviation)
    patches = case["patches"].copy()
    patches[case["visible"][0]] += 5
    other_context = terms_of(case | {"patches": patches})
    np.testing.assert_array_equal(before.mismatch[0], other_context.mismatch[0])
    assert np.abs(np.asarray(before.deviation[0] - other_context.deviation[0])).max() > 1e-3


def test_contrast_moves_the_nll_by_its_logarithm_and_the_deviation_not_at_all(
    case: dict[str, np.ndarray],
) -> None:
    """Three times the contrast: D is the same, the log-determinant log 3 more."""
    low, high = terms_of(case), terms_of(case | {"patches": 3 * case["patches"] + 1})
    # float32; ε is 1e-6 of the variance
    np.testing.assert_allclose(high.deviation, low.deviation, rtol=1e-4)
    nll = [lcas.score(terms, "context_nll", 0.0) for terms in (low, high)]
    np.testing.assert_allclose(nll[1] - nll[0], np.log(3), atol=1e-4)


def test_scores_are_float32_whatever_the_backbone_computes_in() -> None:
    patches = jnp.ones((L, D), jnp.bfloat16)
    terms = lcas.run_terms(patches, patches[: L - N], jnp.arange(N), jnp.arange(N, L))
    assert {leaf.dtype for leaf in jax.tree.leaves(terms)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("variant", SCORES)
def test_uniform_images_stay_finite(variant: Score) -> None:
    patches = jnp.full((L, D), 0.37)
    visible = jnp.arange(N)
    predictions = jnp.full((L - N, D), 0.9)
    terms = jax.tree.map(
        lambda x: x[None], lcas.run_terms(patches, predictions, visible, jnp.arange(N, L))
    )
    scores = lcas.score(terms, variant, 1.0)
    assert np.isfinite(scores).all()
    assert np.isfinite(lcas.summarize(scores)).all()


def test_uniform_share_counts_patches_without_texture_whatever_their_colour() -> None:
    patches = np.random.default_rng(0).normal(0, 1, (8, D)).astype(np.float32)
    patches[:3] = np.tile([0.2, -1.0, 2.0], D // C)  # one strong colour
    assert float(lcas.uniform_share(jnp.array(patches), 1e-3)) == pytest.approx(3 / 8)


def test_unknown_names_are_refused(case: dict[str, np.ndarray]) -> None:
    with pytest.raises((ValueError, TypeError), match="x"):
        lcas.score(terms_of(case), "x", 1.0)  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError), match="x"):
        lcas.summarize(jnp.ones((2, 2)), sensitivity="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", SCORES)
def test_a_score_needs_its_terms_and_no_others(case: dict[str, np.ndarray], variant: Score) -> None:
    terms = terms_of(case)
    others = [f.name for f in dataclasses.fields(terms) if f.name not in lcas.TERMS_OF[variant]]
    alone = dataclasses.replace(terms, **dict.fromkeys(others))
    np.testing.assert_array_equal(lcas.score(alone, variant, 1.0), lcas.score(terms, variant, 1.0))
    for name in lcas.TERMS_OF[variant]:
        with pytest.raises(ValueError, match=name):
            lcas.score(dataclasses.replace(alone, **{name: None}), variant, 1.0)


def test_statistics_without_spread_have_a_finite_gradient() -> None:
    """One run has no spread over runs, a uniform image none at all; learning λ meets both."""
    for scores in (jnp.arange(1.0, 7.0)[None], jnp.ones((2, 5))):
        gradient = jax.grad(lambda s: lcas.summarize(s).sum())(scores)
        assert np.isfinite(gradient).all()
