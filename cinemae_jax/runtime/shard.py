"""The slice of every batch that one process reads."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shard:
    """Slice ``index`` of ``count`` of every global batch is read by this process."""

    index: int = 0
    count: int = 1


WHOLE = Shard()
