"""Jobs: a command is sent to a cluster once, followed, and its answer told apart from its log.

The command runs there as it would here, from a wheel of this installation that travels with it. Its standard output and
standard error end up in one log; each line of standard output begins with a mark, by which it is found again.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from cluster.jobs_api import IdTaken, Job, JobsApi
from cluster.wheel import make_wheel
from pipelines.errors import NightreadError, TryLater, UsageError

# What begins a record of a sequence of JSON texts (RFC 7464). No log line holds one: control characters are escaped.
ANSWER_MARK = "\x1e"
# The module that runs the command on the cluster, and marks what it answers.
ENTRYPOINT = "jobs.submitted"
# Finished and committed: a second start of the day has nothing to add, whatever the gates said.
FINISHED = (0, 3, 5)
STOPPED_CODE = 143
# A command that is stopped writes down what is finished before it ends; Ray would kill it after 3 s.
SECONDS_TO_STOP = 120
SECONDS_OF_SILENCE = 600.0
_PAUSE = 2.0


@dataclass(frozen=True)
class Order:
    """What is to run.

    Attributes:
        command: Names of the command: `score`, or `runs` and `clean`.
        words: What was typed behind them.
        added: Options that are added on the cluster, and do not make it another command.
        options: Options that stand in the environment instead, as NIGHTREAD_<COMMAND>_<OPTION>.
        variables: What else the job finds in its environment. These and the options can be read by everyone who sees
            the cluster.
    """

    command: tuple[str, ...]
    words: tuple[str, ...]
    added: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    def id_of_day(self, day: datetime.date) -> str:
        """The name that two starts of the same command on one day share."""
        said = [list(self.command), list(self.words), sorted(self.options.items())]
        return f"nightread-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]}-{day:%Y-%m-%d}"

    @property
    def entrypoint(self) -> str:
        """The command line of the job."""
        return shlex.join(["exec", "python", "-m", ENTRYPOINT, *self.command, *self.added, *self.words])


def check_id(name: str) -> str:
    """Return a name for a job if it can be one.

    Raises:
        UsageError: If it has other characters than letters, digits, `.`, `_` and `-`, or is too long.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(
            f"{name!r} cannot be the id of a job.", "Use up to 100 letters, digits, dots, dashes and underscores."
        )
    return name


def submit(api: JobsApi, order: Order, name: str | None) -> tuple[Job, bool]:
    """Start a job, unless one of its name runs or has finished.

    Args:
        api: Where.
        order: What.
        name: Its name; None: that of the command and the day (UTC). One that failed or was stopped gets `-2` and so on.

    Returns:
        The job, and whether it was started just now.

    Raises:
        UsageError, TryLater: If the job server refuses, or does not answer.
    """
    base = check_id(name or order.id_of_day(datetime.datetime.now(datetime.UTC).date()))
    for number in count(1):
        numbered = base if number == 1 else f"{base}-{number}"
        job = api.job(numbered)
        if job is None:
            started = _start(api, order, numbered)
            job = known_job(api, numbered)
            if started:
                return job, True
        if not job.over or (job.status != "STOPPED" and job.exit_code in FINISHED):
            return job, False
    raise AssertionError("there is always a next number")


def known_job(api: JobsApi, name: str) -> Job:
    """What is known of a job.

    Raises:
        UsageError: If there is none of that name.
    """
    job = api.job(check_id(name))
    if job is None:
        raise UsageError(
            f"The cluster at {api.address} knows no job {name}.",
            "A head that was started again has forgotten its jobs.",
        )
    return job


def _start(api: JobsApi, order: Order, name: str) -> bool:
    """Send wheel and command; False where another start of the same name came first."""
    wheel, data = make_wheel()
    # Ray unpacks what ends in .zip, and a wheel is one; the name says what is in it, so that it is sent once.
    package = f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:40]}.zip"
    if not api.has_package(package):
        api.send_package(package, data)
    runtime_env = {
        "working_dir": f"gcs://{package}",
        "env_vars": {**order.variables, **order.options, "RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_TO_STOP)},
    }
    try:
        api.submit(name, order.entrypoint, runtime_env, {"wheel": wheel})
    except IdTaken:
        return False
    return True


def follow(api: JobsApi, job: Job, show: Callable[[str], None]) -> tuple[Job, str]:
    """Wait until a job is over.

    Args:
        api: Where it runs.
        job: Which.
        show: Called with each line of its log.

    Returns:
        Its end, and what it wrote to standard output.

    Raises:
        TryLater: If the job server no longer answers, or no longer knows the job.
    """
    log = _Log(show)
    silent_since: float | None = None
    while True:
        try:
            now = _still_known(api, job)
            if now.over:
                log.whole(api.log(now.id))
                return now, log.answer
            silent_since = None
            asyncio.run(_tail(api, now.id, log))
        except TryLater as error:
            silent_since = silent_since or time.monotonic()
            if isinstance(error, JobForgotten) or time.monotonic() - silent_since > SECONDS_OF_SILENCE:
                raise
        except OSError:  # some proxies let no socket through: then the log is shown at the end
            pass
        time.sleep(_PAUSE)


class JobForgotten(TryLater):
    """The head was lost and knows nothing of the job any more."""


def _still_known(api: JobsApi, job: Job) -> Job:
    now = api.job(job.id)
    if now is None:
        raise JobForgotten(
            f"The cluster at {api.address} no longer knows the job {job.id}: its head was started again.",
            "The same command starts it once more, and it goes on from where it was.",
        )
    return now


async def _tail(api: JobsApi, name: str, log: _Log) -> None:
    log.begin()
    async for text in api.tail(name):
        log.more(text)


class _Log:
    """Takes a log, from its beginning again and again, and shows each line of it once."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._shown = 0  # lines
        self._line = 0
        self._rest = ""
        self._answers: dict[int, str] = {}

    @property
    def answer(self) -> str:
        """What went to standard output; each line ends with a line break."""
        return "".join(f"{line}\n" for _, line in sorted(self._answers.items()))

    def begin(self) -> None:
        """From here on the log comes from its beginning."""
        self._line, self._rest = 0, ""

    def more(self, text: str) -> None:
        """Take the next piece."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(line)

    def whole(self, text: str) -> None:
        """Take all of it."""
        self.begin()
        self.more(text)
        if self._rest:
            self._take(self._rest)

    def _take(self, line: str) -> None:
        self._line += 1
        if self._line <= self._shown:
            return
        self._shown = self._line
        # A library may have left its own line without an end before the mark.
        note, mark, answer = line.partition(ANSWER_MARK)
        if mark:
            self._answers[self._line] = answer
        if note or not mark:
            self._show(note)


def split_log(text: str) -> tuple[list[str], str]:
    """What a job noted, line by line, and what it answered."""
    notes: list[str] = []
    log = _Log(notes.append)
    log.whole(text)
    return notes, log.answer


def exit_code_of(job: Job) -> int:
    """The exit code of a job that is over: that of its command.

    Raises:
        TryLater: If Ray ended it before its command did; the same command goes on.
    """
    if job.status == "STOPPED":
        return STOPPED_CODE
    if job.exit_code is None:
        said = (job.message.strip().splitlines() or ["no reason"])[0].rstrip(".")
        raise TryLater(
            f"The cluster ended the job {job.id}: {said[:300]}.", "The same command starts it again, and it goes on."
        )
    return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code


def stop(api: JobsApi, name: str) -> Job:
    """Have a job end as by SIGTERM and wait for it; what is finished is kept, and the same command goes on from there.

    Raises:
        UsageError: If there is none of that name.
        TryLater: If it does not end.
    """
    job = known_job(api, name)
    if job.over:
        return job
    api.stop(name)
    until = time.monotonic() + SECONDS_TO_STOP + 30
    while time.monotonic() < until:
        if (now := known_job(api, name)).over:
            return now
        time.sleep(_PAUSE / 2)
    raise _does_not_end(name)


def _does_not_end(name: str) -> NightreadError:
    return TryLater(f"The job {name} was asked to end and has not.", "See with --logs what it does.")
