"""Waits for the end of the process that owns an embedded server, and clears up after it.

A program of its own: `python _watchdog.py DIRECTORY`. The owner writes on its standard input, line
by line, the process id of what it has just started, or 0 when that has ended; each line is answered
by a byte. When the input ends, which the system sees to even on SIGKILL, what runs of the server is
ended and the directory removed.

It may run as root, and the server does not. So it believes nothing that the server's account can
write: what it signals it has from its owner, and holds by a handle that means no other process.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

_PATIENCE = 10.0


class Process:
    """A process that the owner has started as the leader of a session, and has not reaped yet.

    Raises:
        ProcessLookupError: it has been reaped nevertheless.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._handle = _open_handle(pid)

    def end(self) -> None:
        """Let the server break off, as by a crash; kill it if it does not."""
        with suppress(ProcessLookupError):
            self._send(signal.SIGQUIT)
            self._send(signal.SIGCONT)  # one under SIGSTOP hears nothing else
            if not self._has_ended(_PATIENCE):
                self._send(signal.SIGKILL)
                self._has_ended(_PATIENCE)

    def release(self) -> None:
        """Forget it."""
        if self._handle is not None:
            os.close(self._handle)

    def _send(self, number: int) -> None:
        if self._handle is not None:
            signal.pidfd_send_signal(self._handle, number)
        elif os.getsid(self._pid) == self._pid:
            os.kill(self._pid, number)
        else:
            raise ProcessLookupError(self._pid)

    def _has_ended(self, seconds: float) -> bool:
        if self._handle is not None:
            return bool(select.select([self._handle], [], [], seconds)[0])
        deadline = time.monotonic() + seconds
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                self._send(0)
                time.sleep(0.05)
            return False
        return True


def _open_handle(pid: int) -> int | None:
    """Give a handle of the process; `None` where the system has none (Linux has, since 5.3)."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        return None


def _remove(directory: str) -> None:
    for _ in range(5):
        # It goes by descriptors, and never through a link that somebody puts in its way.
        subprocess.run(["rm", "-rf", "--", directory], stderr=subprocess.DEVNULL, check=False)
        if not os.path.lexists(directory):
            return
        time.sleep(1)  # what is left of the server is still writing


def _hold(pid: int) -> Process | None:
    with suppress(ProcessLookupError):
        return Process(pid) if pid else None
    return None


def main(directory: str) -> None:
    """Serve one owner."""
    process: Process | None = None
    for line in sys.stdin:
        if process is not None:
            process.release()
        process = _hold(int(line))
        with suppress(BrokenPipeError):
            os.write(1, b"\n")
    if process is not None:
        process.end()
    _remove(directory)


if __name__ == "__main__":
    main(sys.argv[1])
