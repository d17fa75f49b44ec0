"""``cinemae serve``: the detector as a page for people and as HTTP for programs."""
