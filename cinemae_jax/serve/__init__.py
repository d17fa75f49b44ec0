"""``cinemae serve``: a detector as a web page and as an HTTP interface."""
