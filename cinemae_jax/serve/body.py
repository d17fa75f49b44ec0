"""Reads the bytes of one image from a request: bounded in size and time, never on disk."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

# Form field of the file.
FIELD = "image"
# Time limit for a body; after it, the request loses its place in the queue.
READ_SECONDS = 60
# Longest pause in a body: silent senders must not hold places of others.
SILENT_SECONDS = 5
ANY_IMAGE, BINARY, FORM = "image/*", "application/octet-stream", "multipart/form-data"


async def read(request: Request, max_bytes: int) -> bytes:
    """The image of a request: its whole body, or the file ``image`` of a form.

    Args:
      request: whose body has not been read yet.
      max_bytes: largest accepted body; enforced whatever length was announced.

    Raises:
      HTTPException: 400 no image, 408 too slow, 413 too large, 415 not an image type.
      ClientDisconnect: if the client disconnects.
    """
    kind = request.headers.get("content-type", BINARY).partition(";")[0].strip().lower()
    is_form = kind == FORM
    if not (is_form or kind == BINARY or kind.startswith(ANY_IMAGE[:-1])):
        raise HTTPException(
            415,
            f"content type {kind} is not accepted: send the file itself as {ANY_IMAGE} or "
            f"{BINARY}, or a form ({FORM}) with the file in {FIELD!r}",
        )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    chunks = _bounded(request, max_bytes)
    try:
        async with asyncio.timeout(READ_SECONDS):
            data = (
                await _of_form(request, chunks)
                if is_form
                else b"".join([chunk async for chunk in chunks])
            )
    except TimeoutError as error:
        raise HTTPException(
            408,
            f"the body did not arrive within {READ_SECONDS} seconds, or paused for more than "
            f"{SILENT_SECONDS}",
        ) from error
    if not data:
        raise HTTPException(400, "no image: the body is empty")
    return data


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The chunks of the body, counted as they arrive."""
    size, stream = 0, aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"too large: this server accepts at most {max_bytes:,} bytes")


class _InMemory(MultiPartParser):
    """Keeps files in memory; Starlette's parser moves files above 1 MB to a temporary file."""

    spool_max_size = 0  # no limit: the size of the whole body is bounded


async def _of_form(request: Request, chunks: AsyncGenerator[bytes, None]) -> bytes:
    wanted = f"send exactly one file, in {FIELD!r}"
    try:
        form = await _InMemory(request.headers, chunks, max_files=1, max_fields=0).parse()
    except MultiPartException as error:
        raise HTTPException(400, f"form: {error.message} ({wanted})") from error
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise HTTPException(400, f"form: no file in {FIELD!r} ({wanted})")
        return await file.read()
    finally:
        await form.close()
