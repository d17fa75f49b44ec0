"""CINEMAE in JAX: telling AI-generated images from photographs with a frozen masked autoencoder."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cinemae_jax.detector.api import Detector, Prediction

__version__ = "0.1.0"
__all__ = ["Detector", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("Detector", "Prediction"):  # JAX takes seconds to import: not before it is needed
        from cinemae_jax.detector import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
