"""Why an image file is refused: the error of the decoder, and its reasons."""

# Reasons of a ``DecodeError``.
EMPTY, TRUNCATED, DAMAGED, NO_IMAGE = "empty", "truncated", "damaged", "not an image"
TOO_LARGE, TOO_SMALL, TOO_NARROW = "too large", "too small", "too narrow"
UNSUPPORTED, FOREIGN = "unsupported pixels", "unsupported format"


class DecodeError(ValueError):
    """An image that cannot be scored; the message can be shown next to the file name.

    Attributes:
      reason: one of the constants above, EMPTY to FOREIGN.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
