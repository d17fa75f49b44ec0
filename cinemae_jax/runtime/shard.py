"""The slice of every batch that one process reads."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which slice of every global batch is read here."""

    index: int = 0
    count: int = 1


WHOLE = Shard()
