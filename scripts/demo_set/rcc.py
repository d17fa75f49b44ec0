"""Read Qt binary resource containers (.rcc), where gcompris keeps its pictures.

In: the bytes of a container. Out: (path, content) of its files.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

COMPRESSED, DIRECTORY, ZSTD = 1, 2, 4  # flags of a node


def is_rcc(data: bytes) -> bool:
    return data.startswith(b"qres")


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of every file in a Qt binary resource container.

    The header holds the format version and the offsets of three sections: the tree of fixed-size
    nodes (node 0 is the root), the contents and the names. A directory node holds the number of its
    children and the index of the first; they are consecutive.
    """
    version, tree, contents, names = struct.unpack_from(">4I", data, 4)
    node_size = 14 if version < 2 else 22  # version 2 added the modification time

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        start = names + offset + 6  # 2 bytes of length, 4 bytes of hash
        return data[start : start + 2 * length].decode("utf-16-be")

    def content_at(offset: int, flags: int) -> bytes:
        if flags & ZSTD:
            raise ValueError("Zstandard contents are not supported")
        (length,) = struct.unpack_from(">I", data, contents + offset)
        start = contents + offset + 4
        raw = data[start : start + length]
        # Compressed contents start with 4 bytes for the full length.
        return zlib.decompress(raw[4:]) if flags & COMPRESSED else raw

    def walk(index: int, parent: str) -> Iterator[tuple[str, bytes]]:
        node = tree + index * node_size
        name, flags = struct.unpack_from(">IH", data, node)
        path = f"{parent}/{name_at(name)}" if index else ""
        if flags & DIRECTORY:
            count, first = struct.unpack_from(">2I", data, node + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        else:
            (offset,) = struct.unpack_from(">I", data, node + 10)
            yield path, content_at(offset, flags)

    return walk(0, "")
