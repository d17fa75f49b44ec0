"""A run goes on under a version with more settings, but not with other settings."""

from pathlib import Path
from typing import Any

import pytest

from cinemae_jax.detector import resuming
from cinemae_jax.model.config import LATER
from cinemae_jax.runtime.checkpoints import CheckpointError


def metadata(**detector: Any) -> dict[str, Any]:
    return {"kind": "detector", "settings": {"seed": 0, "detector": {"num_runs": 2, **detector}}}


def test_fields_newer_than_a_checkpoint_had_the_value_of_before() -> None:
    resuming.require_same_run(metadata(), metadata(**LATER), Path("run"))
    with pytest.raises(CheckpointError, match=r"settings\.detector\.masking was 'random'"):
        resuming.require_same_run(metadata(), metadata(**LATER | {"masking": "disjoint"}), Path())
    with pytest.raises(CheckpointError, match=r"settings\.detector\.score_share was 0\.5"):
        resuming.require_same_run(metadata(score_share=0.5), metadata(**LATER), Path("run"))
