"""CINEMAE in JAX: telling AI-generated images from photographs with a frozen masked autoencoder."""

__version__ = "0.1.0"
