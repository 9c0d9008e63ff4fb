"""What storage's errors mean, and which of them are worth another try.

Clients word their errors in many ways; here each becomes one `Fault`. What a server said is never passed on: S3
repeats session tokens and key identifiers in its error documents.
"""

from __future__ import annotations

import contextlib
import email.utils
import enum
import errno
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.errors import NightreadError, NoAnswer, TryLater, UsageError
from pipelines.storage import paths
from pipelines.storage.roles import setting_of

Result = TypeVar("Result")

# Ten tries: where one request in five fails, one image in ten million is still lost; six would lose one in 16,000.
TRIES = 10
TRY_SECONDS = 12.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
# A server that asks for fewer requests is not helped by the same ones two seconds later.
LONGEST_PAUSE_WHEN_THROTTLED = 20.0
# The longest time that a server's own word (Retry-After) is taken for.
LONGEST_TOLD_PAUSE = 60.0


class Fault(enum.Enum):
    """The kinds of trouble that storage can give."""

    MISSING = "the file or folder is not there"
    NO_BUCKET = "the bucket does not exist"
    EXISTS = "it is there already"
    DENIED = "access is refused"
    NO_CREDENTIALS = "no credentials were found"
    EXPIRED = "the credentials have expired"
    NOT_TRUSTED = "nobody who is trusted here has signed the server's certificate"
    WRONG_REGION = "the store expects another region"
    UNSUPPORTED = "the server does not know this kind of request"
    WRONG_PLACE = "the name or the settings cannot be right"
    BAD_KEY = "a key that this client cannot express"
    FULL = "the disk is full"
    PASSING = "storage does not answer as it should"


_ERRNO_FAULTS: dict[int, Fault] = {
    errno.ENOENT: Fault.MISSING,
    errno.ENOTDIR: Fault.MISSING,
    errno.ENAMETOOLONG: Fault.MISSING,
    errno.ELOOP: Fault.MISSING,
    errno.EEXIST: Fault.EXISTS,
    errno.EACCES: Fault.DENIED,
    errno.EPERM: Fault.DENIED,
    errno.EROFS: Fault.DENIED,
    errno.EISDIR: Fault.WRONG_PLACE,
    errno.EINVAL: Fault.WRONG_PLACE,
    errno.ENOSPC: Fault.FULL,
    errno.EDQUOT: Fault.FULL,
    errno.EFBIG: Fault.FULL,
}
_STATUS = re.compile(r"(?:status code: |status: )(\d{3})")
_PASSING_STATUS = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 507, 509))
_THROTTLED_STATUS = frozenset((429, 503, 509))
_THROTTLED_CODE = re.compile(
    r"\b(?:SlowDown\w*|Throttl\w+|TooManyRequests\w*|RequestLimitExceeded|BandwidthLimitExceeded)\b"
)
_EXPIRED_CODE = re.compile(r"\b(?:ExpiredToken\w*|TokenRefreshRequired|RequestExpired)\b")
_UNTRUSTED = re.compile(
    r"InvalidCertificate|invalid peer certificate|CERTIFICATE_VERIFY_FAILED|certificate verify failed"
)
_OTHER_REGION = re.compile(r"\b(?:AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraintException)\b")
_UNSUPPORTED_CODE = re.compile(r"\b(?:X?NotImplemented|MissingContentMD5)\b")
# What may be over at the next try; credentials that have expired are often being renewed in that moment.
_REPEATED = frozenset((Fault.PASSING, Fault.EXPIRED))


def fault_of(error: BaseException) -> Fault | None:
    """Say what kind of trouble an error of a storage client is; None for errors that are none of storage's."""
    if isinstance(error, OSError) and (found := _fault_under(error)):
        return found
    if isinstance(error, OSError) and error.errno is not None:
        return _ERRNO_FAULTS.get(error.errno, Fault.PASSING)
    module = type(error).__module__
    if isinstance(error, FileNotFoundError):
        return Fault.NO_BUCKET if "NoSuchBucket" in str(error) else Fault.MISSING
    if isinstance(error, FileExistsError):
        return Fault.EXISTS
    if isinstance(error, PermissionError):
        return Fault.DENIED
    if isinstance(error, OSError):
        return Fault.PASSING
    if module.startswith("obstore"):
        return _fault_of_obstore(error)
    if isinstance(error, ValueError) and "Could not parse path" in str(error):
        return Fault.BAD_KEY
    if module.startswith(("botocore", "aiobotocore", "aiohttp", "urllib3")):
        return _fault_of_botocore(error)
    return None


def _fault_under(error: OSError) -> Fault | None:
    """What the usual clients hide behind an error of the operating system, and which is not what that one says."""
    if _UNTRUSTED.search(str(error)):
        return Fault.NOT_TRUSTED
    response = getattr(error.__cause__, "response", None)
    code = str(response.get("Error", {}).get("Code")) if isinstance(response, dict) else ""
    if _EXPIRED_CODE.fullmatch(code):
        return Fault.EXPIRED
    return Fault.WRONG_REGION if _OTHER_REGION.fullmatch(code) else None


def _fault_of_obstore(error: BaseException) -> Fault:
    text = str(error)
    kind = type(error).__name__
    if _EXPIRED_CODE.search(text):
        return Fault.EXPIRED
    by_type = {
        "AlreadyExistsError": Fault.EXISTS,
        "PreconditionError": Fault.EXISTS,
        "PermissionDeniedError": Fault.DENIED,
        "UnauthenticatedError": Fault.DENIED,
        "InvalidPathError": Fault.BAD_KEY,
    }
    if kind in by_type:
        return by_type[kind]
    if "NoSuchBucket" in text:
        return Fault.NO_BUCKET
    if _UNTRUSTED.search(text):
        return Fault.NOT_TRUSTED
    if _OTHER_REGION.search(text):
        return Fault.WRONG_REGION
    if _UNSUPPORTED_CODE.search(text):
        return Fault.UNSUPPORTED
    if "169.254.169.254" in text or "Missing credentials" in text:
        return Fault.NO_CREDENTIALS
    status = _STATUS.search(text)
    if status and status[1] in ("401", "403"):
        return Fault.DENIED
    if status and int(status[1]) not in _PASSING_STATUS and int(status[1]) < 500:
        return Fault.WRONG_PLACE
    return Fault.PASSING


def _fault_of_botocore(error: BaseException) -> Fault:
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return Fault.NO_CREDENTIALS if "Credentials" in type(error).__name__ else Fault.PASSING
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    code = str(response.get("Error", {}).get("Code"))
    if code == "NoSuchBucket":
        return Fault.NO_BUCKET
    if _EXPIRED_CODE.fullmatch(code):
        return Fault.EXPIRED
    if _OTHER_REGION.fullmatch(code):
        return Fault.WRONG_REGION
    if _UNSUPPORTED_CODE.fullmatch(code):
        return Fault.UNSUPPORTED
    if status in (401, 403):
        return Fault.DENIED
    if status == 404:
        return Fault.MISSING
    return Fault.PASSING if status in _PASSING_STATUS or status >= 500 else Fault.WRONG_PLACE


def is_throttled(error: BaseException) -> bool:
    """Say whether a server asked for fewer requests, or may have: 503 is what most of them say."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = str(response.get("Error", {}).get("Code"))
    elif type(error).__module__.startswith("obstore"):
        text = str(error)
        found = _STATUS.search(text)
        status = int(found[1]) if found else 0
    else:
        return False
    return status in _THROTTLED_STATUS or bool(_THROTTLED_CODE.search(text))


def told_to_wait(error: BaseException) -> float:
    """Return how many seconds a server asked to be left alone (Retry-After), at most 60; 0 where it did not.

    Only the plain client shows an answer's headers; obstore hides them.
    """
    response = getattr(error, "response", None)
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}) if isinstance(response, dict) else {}
    said = str(headers.get("retry-after", "")).strip()
    seconds = 0.0
    with contextlib.suppress(ValueError, TypeError):
        seconds = float(said) if said.isdecimal() else email.utils.parsedate_to_datetime(said).timestamp() - time.time()
    return min(max(seconds, 0.0), LONGEST_TOLD_PAUSE)


class Hold:
    """Holds back the requests of all threads that share it for as long as a server asked one of them to.

    Args:
        sleep: Instead of the real one.
        clock: Monotonic seconds, instead of the real one.
    """

    def __init__(
        self, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sleep = sleep
        self._clock = clock
        self._until = clock()
        self._lock = threading.Lock()

    def ask_for(self, seconds: float) -> None:
        """Send nothing for this long from now on; a longer pause that was asked for before stands."""
        with self._lock:
            self._until = max(self._until, self._clock() + seconds)

    def wait(self) -> None:
        """Wait until a request may be sent; threads do not all go at the same moment."""
        while (left := self._until - self._clock()) > 0:
            self._sleep(left + random.uniform(0, min(left, LONGEST_PAUSE)))


def explained(fault: Fault, uri: str) -> NightreadError | FileNotFoundError:
    """Return the error that a person, or the caller, can act on.

    Args:
        fault: What happened.
        uri: The place that was being used.
    """
    if fault in (Fault.MISSING, Fault.BAD_KEY):
        return FileNotFoundError(errno.ENOENT, "no such file", uri)
    if fault is Fault.EXPIRED:
        return TryLater(f"The credentials for {uri!r} have expired.", "Renew them, then start the same command again.")
    if paths.is_bucket(uri) and fault is not Fault.FULL:
        return _explained_of_bucket(fault, uri)
    if fault is Fault.DENIED:
        return UsageError(f"Access to {uri!r} is refused.", "Check its owner and permissions.")
    if fault is Fault.FULL:
        return TryLater(
            f"The disk is full: {uri!r} could not be written.", "Free some space and start the same command again."
        )
    if fault is Fault.PASSING:
        cure = "Check that it is mounted and the disk is well. Then start the same command again."
        return NoAnswer(f"Storage does not answer for {uri!r}.", cure)
    return UsageError(f"{uri!r} cannot be used: {fault.value}.", "Give another name.")


def _explained_of_bucket(fault: Fault, uri: str) -> NightreadError:
    endpoint, region, profile = (setting_of(uri, name) for name in ("ENDPOINT_URL", "REGION", "PROFILE"))
    if fault is Fault.PASSING:
        cure = (
            f"Check {endpoint}, the web proxy if one is set, and that both are up. Then start the same command again."
        )
        return NoAnswer(f"Storage does not answer for {uri!r}.", cure)
    keys = f"{setting_of(uri, 'ACCESS_KEY_ID')} and {setting_of(uri, 'SECRET_ACCESS_KEY')}"
    message, cure = {
        Fault.NO_BUCKET: (f"The bucket of {uri!r} does not exist.", f"Correct its name or {endpoint}."),
        Fault.NO_CREDENTIALS: (f"No S3 credentials were found for {uri!r}.", f"Set {keys}, or {profile}."),
        Fault.DENIED: (f"Access to {uri!r} is refused.", f"Check the S3 credentials ({keys}) and the bucket's policy."),
        Fault.NOT_TRUSTED: (
            f"The server of {uri!r} has a certificate that is not trusted here.",
            "Set NIGHTREAD_S3_CA_FILE to the PEM file of the authority that signed it; a server's own will do "
            "only where it is not marked as an authority (CA:TRUE).",
        ),
        Fault.UNSUPPORTED: (
            f"The server of {uri!r} does not know a kind of request that was made.",
            "Set NIGHTREAD_S3_CHECKSUMS=none if it is one that refuses checksum headers.",
        ),
        Fault.WRONG_REGION: (f"The bucket of {uri!r} is in another region.", f"Set {region} to that region."),
    }.get(fault, (f"{uri!r} cannot be used: {fault.value}.", f"Check the name, {endpoint} and {region}."))
    return UsageError(message, cure)


def translated(error: BaseException, uri: str) -> BaseException:
    """Return what to raise instead of a client's error; the error itself where it is none of storage's."""
    fault = fault_of(error)
    return error if fault is None else explained(fault, uri)


def with_retries(
    action: Callable[[], Result],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    before: Callable[[], None] | None = None,
) -> Result:
    """Call until it succeeds or fails for good: ten tries, begun within 12 seconds, pauses with full jitter.

    Pauses that a server asked for are longer, and do not count against the 12 seconds.

    Args:
        action: May be called several times.
        sleep: Instead of the real one.
        clock: Monotonic seconds, instead of the real one.
        before: Called before each try; may wait, which does not count either.

    Raises:
        BaseException: The last error of the action, unchanged; at once where another try cannot help.
    """
    spent = 0.0
    for attempt in range(TRIES):
        if before is not None:
            before()
        began = clock()
        try:
            return action()
        except Exception as error:
            spent += clock() - began
            last = attempt == TRIES - 1 or spent > TRY_SECONDS
            if last or fault_of(error) not in _REPEATED:
                raise
            throttled = is_throttled(error)
            longest = LONGEST_PAUSE_WHEN_THROTTLED if throttled else LONGEST_PAUSE
            pause = random.uniform(0, min(longest, FIRST_PAUSE * 2**attempt))
            spent += 0.0 if throttled else pause
            sleep(told_to_wait(error) + pause)
    raise AssertionError("unreachable")
