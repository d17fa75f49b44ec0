"""The bytes of one image out of a request: bounded in size and in time, and never on a disk."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

# Name of the file in a form.
FIELD = "image"
# A body that takes longer is given up, and with it its place in the queue.
READ_SECONDS = 60
ANY_IMAGE, BINARY, FORM = "image/*", "application/octet-stream", "multipart/form-data"


async def read(request: Request, max_bytes: int) -> bytes:
    """The image that a request carries: its whole body, or the file ``image`` of a form.

    Args:
      request: whose body nobody has read.
      max_bytes: of the body; what is beyond it is not held, whatever was announced.

    Raises:
      HTTPException: 400 without an image, 408 too slow, 413 too large, 415 no kind of image.
      ClientDisconnect: if whoever sends it goes away.
    """
    kind = request.headers.get("content-type", BINARY).partition(";")[0].strip().lower()
    is_form = kind == FORM
    if not (is_form or kind == BINARY or kind.startswith(ANY_IMAGE[:-1])):
        raise HTTPException(
            415,
            f"a body of type {kind} is no image: send the file itself, as {ANY_IMAGE} or {BINARY}, "
            f"or a form ({FORM}) with the file in {FIELD!r}",
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
        raise HTTPException(408, f"no whole body within {READ_SECONDS} seconds") from error
    if not data:
        raise HTTPException(400, "no image: the body is empty")
    return data


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes; what was announced is not believed."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"too large: more than the {max_bytes:,} bytes that are taken here")


class _InMemory(MultiPartParser):
    """Starlette's own parser would move files above 1 MB to a temporary file."""

    spool_max_size = 0  # never; the body as a whole is bounded


async def _of_form(request: Request, chunks: AsyncGenerator[bytes, None]) -> bytes:
    wanted = f"send one file, in {FIELD!r}, and nothing else"
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
