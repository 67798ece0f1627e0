"""Run a command as a process of its own: how it ended, how long it took, and the most memory it held."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

POLL = 0.02  # seconds between two looks at the child


@dataclass(frozen=True)
class Outcome:
    """What became of a command. `error` is empty where it went well, else one line; `peak` is in bytes."""

    text: str
    error: str
    seconds: float
    peak: int


def run(command: Sequence[str], limit: float = 3600.0, memory: int = resource.RLIM_INFINITY) -> Outcome:
    """Run `command` for at most `limit` seconds, in at most `memory` bytes of addresses.

    The child's own peak is measured, not that of all children so far.

    A process starts with the peak of the one that started it, so keep the caller small.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory)),  # noqa: PLW1509  no threads here
        )
        pid, late = 0, False
        try:
            while not pid:
                time.sleep(POLL)
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if not late and time.perf_counter() - start > limit:
                    late = True
                    process.kill()
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        text, complaint = (_all(stream) for stream in (out, err))
    error = f"stopped after {limit:.0f} s" if late else _error(process.returncode, complaint)
    return Outcome(text, error, seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _all(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read()


def _error(code: int, complaint: str) -> str:
    if code == 0:
        return ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}"


def record(module: str, name: str, limit: float, memory: int = resource.RLIM_INFINITY) -> dict[str, Any]:
    """The JSON that ``python -m module --child name`` prints last, or its name with the error that ended it."""
    done = run([sys.executable, "-m", module, "--child", name], limit, memory)
    return {"name": name, "error": done.error} if done.error else json.loads(done.text.splitlines()[-1])
