"""The one family of errors: each knows its exit code, its machine-readable code and its cure.

Two kinds live here. A `NightreadError` ends a command; `jobs` turns it into one sentence and an exit code.
An `ImageFailure` ends one image only; `scoring` turns it into a row, so that a bad image never costs another its score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class NightreadError(Exception):
    """An error that a person can act on.

    Args:
        message: What was wrong and with which value; one sentence, never with a patient's name in it.
        cure: What to do about it; one sentence, may be empty where the message already says it.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message} {self.cure}".rstrip()

    def __reduce__(self) -> tuple[type[NightreadError], tuple[str, str]]:
        """Keep the cure across processes: an exception's own pickling keeps only the first argument."""
        return type(self), (self.message, self.cure)


class UsageError(NightreadError):
    """Usage or configuration: the same command can only fail again."""

    exit_code = 2
    code = "usage"


class ModelRefused(NightreadError):
    """The model is missing, altered or fails its checks."""

    exit_code = 4
    code = "model_refused"


class TryLater(NightreadError):
    """Waiting helps: another run holds the lease, storage does not answer, nothing is mounted."""

    exit_code = 75
    code = "try_later"


class NoAnswer(TryLater):
    """Storage does not answer, after retries; who has time may ask it again."""


class LeaseLost(TryLater):
    """Another process took the results folder over while this one was writing."""

    code = "lease_lost"


class Stopped(NightreadError):
    """Ctrl-C or SIGTERM: what was finished is kept and the same command goes on from there."""

    code = "stopped"

    def __init__(self, message: str, cure: str = "", *, signal_number: int = 2) -> None:
        super().__init__(message, cure)
        self.signal_number = signal_number

    @property
    def stop_code(self) -> int:
        """The shell's code for a death by this signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number


def first_line(error: object) -> str:
    """What another library's error says, by the first line that it says, without the full stop; else its kind."""
    return _lines(error)[0].rstrip(".")


def last_line(error: object) -> str:
    """The same by the last line, for errors that tell a traceback before what was wrong."""
    return _lines(error)[-1].rstrip(".")


def _lines(error: object) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]


@dataclass(frozen=True)
class ImageErrorKind:
    """What a value of the column `error_code` means.

    Attributes:
        meaning: One sentence for the column dictionary.
        lies_in_image: True where a later night would meet the same failure again, so that the image is
            not scored again unless it changes or `--retry-failed` is said.
    """

    meaning: str
    lies_in_image: bool


IMAGE_ERRORS: dict[str, ImageErrorKind] = {
    "not_an_image": ImageErrorKind("The bytes are empty or of no image format that is read.", True),
    "unsupported": ImageErrorKind("An image, but of a variant that cannot be read faithfully.", True),
    "truncated": ImageErrorKind("An image whose data end early or are damaged.", True),
    "too_large": ImageErrorKind("More bytes or pixels than the limits allow; found before decoding.", True),
    "decoder_crashed": ImageErrorKind("Decoding this image killed the decoding process.", True),
    "timed_out": ImageErrorKind("Decoding this image took longer than the limit.", True),
    "not_found": ImageErrorKind("The file was gone when it was read.", False),
    "permission": ImageErrorKind("The file may not be read by this user.", False),
    "storage": ImageErrorKind("Storage failed while the file was read, after retries.", False),
    "worker_lost": ImageErrorKind(
        "The worker died again and again on this shard, and no single image is to blame.", False
    ),
}


class ImageFailure(Exception):
    """One image could not be scored.

    Args:
        code: A key of `IMAGE_ERRORS`.
        message: One sentence; never a path, never text from the file's metadata.

    Raises:
        KeyError: If the code is not in `IMAGE_ERRORS`.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in IMAGE_ERRORS:
            raise KeyError(code)
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[ImageFailure], tuple[str, str]]:
        return type(self), (self.code, self.message)
