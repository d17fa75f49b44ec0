"""``python -m cinemae_jax`` is the ``cinemae`` command."""

import sys

from cinemae_jax.main import main

if __name__ == "__main__":
    sys.exit(main())
