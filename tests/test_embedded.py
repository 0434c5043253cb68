from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from forebay import _embedded, _watchdog
from forebay._embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    ExistingServer,
    server_or_dsn,
)

pytestmark = pytest.mark.embedded

# Prints the server's process id and directory, then waits to be ended. A shell that starts us in
# the background has SIGINT ignored, which children inherit. The waits are short because a signal
# that arrives just before a system call is only noticed after it.
OWNER = """
    import signal, time
    from forebay._embedded import EmbeddedPostgres

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with EmbeddedPostgres() as server:
        print(server.pid, server.data.parent.parent, flush=True)
        while True:
            time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def running() -> Iterator[EmbeddedPostgres]:
    """Give a running server that a test may restart, but must leave running."""
    with EmbeddedPostgres() as server:
        yield server


def home_of(server: EmbeddedPostgres) -> Path:
    """Return the one directory that the server made."""
    return server.data.parent.parent


def is_alive(pid: int) -> bool:
    """Tell whether the process runs."""
    try:
        os.kill(pid, 0)
        # An orphan that has ended is listed until process 1 reaps it, in a container perhaps never.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()


def wait_until_gone(pid: int, home: Path) -> None:
    """Wait for the watchdog, which nobody else can wait for: its owner is dead."""
    deadline = time.monotonic() + 30
    while is_alive(pid) or home.exists():
        assert time.monotonic() < deadline, f"still there: {is_alive(pid)=}, {home.exists()=}"
        time.sleep(0.01)


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    """Run `OWNER` in a process and session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.communicate()


def server_of(owner: subprocess.Popen[str]) -> tuple[int, Path]:
    """Wait for the owner's server; return its process id and directory."""
    assert owner.stdout is not None
    assert owner.stderr is not None
    line = owner.stdout.readline()
    assert line, f"the owner did not start its server:\n{owner.stderr.read()}"
    pid, home = line.split()
    return int(pid), Path(home)


def test_a_started_server_answers_on_its_socket_and_on_tcp(running: EmbeddedPostgres) -> None:
    """Both connection strings lead to the same server, as its superuser."""
    for dsn in (running.dsn, running.tcp_dsn):
        with psycopg.connect(dsn) as connection:
            row = connection.execute(
                "select current_user, current_setting('data_directory')"
            ).fetchone()
        assert row == ("postgres", str(running.data))


def test_tcp_is_closed_to_those_who_do_not_know_the_password(running: EmbeddedPostgres) -> None:
    """Another user of the machine reaches the port and gets no further."""
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(running.tcp_dsn, password="guess")


def test_a_closed_server_leaves_no_process_and_no_directory() -> None:
    """Everything is gone when the block ends."""
    with EmbeddedPostgres() as server:
        pid, home = server.pid, home_of(server)
        assert is_alive(pid)
        assert home.is_dir()
    assert not is_alive(pid)
    assert not home.exists()


def test_a_failure_inside_the_block_leaves_nothing_either() -> None:
    """The exception comes through unchanged, and the server is gone."""
    server = EmbeddedPostgres()
    seen: list[tuple[int, Path]] = []

    def fail_inside() -> None:
        with server:
            seen.append((server.pid, home_of(server)))
            raise LookupError("the test's own")

    with pytest.raises(LookupError, match="the test's own"):
        fail_inside()
    [(pid, home)] = seen
    assert not is_alive(pid)
    assert not home.exists()


def test_closing_twice_and_closing_what_never_started_do_nothing() -> None:
    """`close` is safe to call in any state."""
    server = EmbeddedPostgres()
    server.close()
    server.start()
    server.close()
    server.close()
    with pytest.raises(EmbeddedPostgresError, match=r"call start\(\) first"):
        _ = server.pid


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_a_restart_keeps_data_and_address(
    running: EmbeddedPostgres, mode: _embedded.StopMode
) -> None:
    """After each way to stop, which the log names, the same address has the same rows."""
    dsn, pid = running.tcp_dsn, running.pid
    with psycopg.connect(dsn) as connection:
        connection.execute("create table if not exists kept (mode text)")
        connection.execute("insert into kept values (%s)", [mode])
        connection.commit()
        # A crash may take what was committed without waiting for the log: make it wait.
        connection.execute("checkpoint")
    running.restart(mode)
    assert running.tcp_dsn == dsn
    assert running.pid != pid
    assert f"received {mode} shutdown request" in running.log_tail(100)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select true from kept where mode = %s", [mode]).fetchone()


def test_a_stopped_server_refuses_connections_until_it_is_started(
    running: EmbeddedPostgres,
) -> None:
    """`stop` keeps the data and closes the door; a second `stop` or `start` does nothing."""
    running.stop()
    running.stop()
    assert "stopped" in repr(running)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(running.dsn)
    running.start()
    pid = running.pid
    running.start()
    assert running.pid == pid
    psycopg.connect(running.dsn).close()


def test_a_killed_server_starts_again(running: EmbeddedPostgres) -> None:
    """`start` waits for orphaned backends and is not fooled by the stale pid file."""
    pid = running.pid
    with psycopg.connect(running.dsn) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # it cannot notice the death of the server
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        later = threading.Timer(0.2, os.kill, [backend, signal.SIGCONT])
        later.start()
        running.start()
        later.join()
    assert running.pid != pid
    psycopg.connect(running.dsn).close()


def test_a_suspended_server_can_be_closed() -> None:
    """A test that fails between SIGSTOP and SIGCONT does not hang the suite."""
    with EmbeddedPostgres() as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
    assert not is_alive(pid)


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error has the end of the log, and the directory is gone."""
    homes: list[Path] = []

    def make_home(*, shared: bool) -> Path:
        homes.append(original(shared=shared))
        return homes[-1]

    original = _embedded._make_home
    monkeypatch.setattr(_embedded, "_make_home", make_home)
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        EmbeddedPostgres({"no_such_setting": 1}).start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(_embedded, "_free_port", lambda: port)
        with pytest.raises(EmbeddedPostgresError, match="in use"):
            EmbeddedPostgres().start()
    assert len(homes) == 2
    assert not any(home.exists() for home in homes)


def test_ctrl_c_in_the_owner_leaves_nothing(owner: subprocess.Popen[str]) -> None:
    """SIGINT goes to the whole group, as from a terminal, and unwinds the owner's block."""
    pid, home = server_of(owner)
    os.killpg(owner.pid, signal.SIGINT)
    assert owner.stderr is not None
    errors = owner.stderr.read()
    owner.wait()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not is_alive(pid)
    assert not home.exists()


def test_ctrl_c_that_the_owner_survives_leaves_the_server_alone(running: EmbeddedPostgres) -> None:
    """A terminal signals its own session only, and the server is not in it."""
    assert os.getsid(running.pid) != os.getsid(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_owner_that_is_killed_leaves_nothing(
    owner: subprocess.Popen[str], number: signal.Signals
) -> None:
    """Where no Python code of the owner runs any more, the watchdog cleans up."""
    pid, home = server_of(owner)
    owner.send_signal(number)
    assert owner.wait() == -number
    wait_until_gone(pid, home)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that has nothing to do with any server; it leads a session, as a server does.

    It ignores SIGQUIT if it is told to by a line.
    """
    program = "read line; trap '' QUIT; echo; exec sleep 60"
    inherited = signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell's background job ignores it
    process = subprocess.Popen(
        ["/bin/sh", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    signal.signal(signal.SIGQUIT, inherited)
    with process:
        yield process
        process.kill()


def make_deaf(sleeper: subprocess.Popen[bytes]) -> None:
    """Tell it to ignore SIGQUIT."""
    assert sleeper.stdin is not None
    assert sleeper.stdout is not None
    sleeper.stdin.write(b"\n")
    sleeper.stdin.flush()
    sleeper.stdout.readline()


def run_on(server: EmbeddedPostgres, program: str) -> None:
    """Run a program under the server's account, as each superuser of the database can."""
    with psycopg.connect(server.dsn, autocommit=True) as session:
        session.execute(sql.SQL("copy (select 1) to program {}").format(program))


def end_watchdog(server: EmbeddedPostgres) -> None:
    """Let the watchdog see what it sees when its owner is killed."""
    assert server._watchdog is not None
    assert server._watchdog.stdin is not None
    server._watchdog.stdin.close()
    server._watchdog.wait(30)


def test_the_watchdog_ends_the_server_and_not_what_its_files_name(
    sleeper: subprocess.Popen[bytes],
) -> None:
    """The pid file is the server's account's, and the watchdog may be root."""
    with EmbeddedPostgres() as server:
        home, lock = home_of(server), server.data / "postmaster.pid"
        run_on(server, f"sed -i '1s/.*/{sleeper.pid}/' {lock}; cat {lock} > /dev/null")
        assert lock.read_text().split()[0] == str(sleeper.pid)
        end_watchdog(server)
        assert server._postmaster is not None
        assert server._postmaster.wait(30) is not None
        assert not home.exists()
        assert sleeper.poll() is None


def test_closing_goes_through_no_link_of_the_server(tmp_path: Path) -> None:
    """Whoever is the server's account puts another server's directory in the place of its own."""
    other = tmp_path / "postmaster.pid"
    other.write_text("somebody else's")
    with EmbeddedPostgres() as server:
        home, data = home_of(server), server.data
        run_on(server, f"cat > /dev/null; mv {data} {data}.moved; ln -s {tmp_path} {data}")
        assert data.resolve() == tmp_path
    assert other.read_text() == "somebody else's"
    assert not home.exists()


def test_a_pid_file_that_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A pipe would hold us up for ever, a link show us what the server's account may not see."""
    path = tmp_path / "postmaster.pid"
    assert _embedded._read_lines(path) == []
    path.write_text("1\n2\n")
    assert _embedded._read_lines(path) == ["1", "2"]
    link = tmp_path / "link"
    link.symlink_to(path)
    assert _embedded._read_lines(link) == []
    assert _embedded._read_lines(tmp_path) == []
    path.unlink()
    os.mkfifo(path)
    assert _embedded._read_lines(path) == []
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert len(_embedded._read_lines(path)[0]) < 1 << 20


@pytest.mark.parametrize("ended", [False, True])
def test_the_watchdog_ends_what_its_owner_named_last(
    sleeper: subprocess.Popen[bytes], ended: bool, tmp_path: Path
) -> None:
    """Nothing, where the owner has said that it has ended: the number may be somebody else's."""
    directory = tmp_path / "home"
    directory.mkdir()
    watchdog = _embedded._start_watchdog(directory)
    with watchdog:
        assert watchdog.stdin is not None
        assert watchdog.stdout is not None
        for pid in [sleeper.pid, *[0] * ended]:
            watchdog.stdin.write(b"%d\n" % pid)
            watchdog.stdin.flush()
            assert watchdog.stdout.read(1)
        threading.Timer(0.2, sleeper.poll).start()
    assert sleeper.poll() == (None if ended else -signal.SIGQUIT)
    assert not directory.exists()


@pytest.mark.parametrize("handles", [True, False])
def test_the_watchdog_ends_what_it_holds(
    sleeper: subprocess.Popen[bytes], handles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a handle, or by the number where the system has no handles."""
    if not handles:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    threading.Timer(0.2, sleeper.poll).start()  # reaps it, as process 1 would
    process = _watchdog.Process(sleeper.pid)
    process.end()
    process.release()
    assert sleeper.wait() == -signal.SIGQUIT


def test_the_watchdog_kills_what_does_not_end(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has stopped to listen leaves nothing either."""
    make_deaf(sleeper)
    monkeypatch.setattr(_watchdog, "_PATIENCE", 0.1)
    _watchdog.Process(sleeper.pid).end()
    assert sleeper.wait() == -signal.SIGKILL


def test_the_watchdog_holds_no_process_that_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    """Its number may be another process's by now."""
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(ProcessLookupError):
        _watchdog.Process(sleeper.pid)


def test_without_handles_the_watchdog_spares_what_leads_no_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server does, so this number is another process's by now."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    with subprocess.Popen(["sleep", "60"]) as process:
        _watchdog.Process(process.pid).end()
        assert process.poll() is None
        process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_root_runs_the_server_as_somebody_else(running: EmbeddedPostgres) -> None:
    """The server's process and data belong to an account without privileges; the copy is ours."""
    assert running.data.stat().st_uid != 0
    assert (running.data / "postmaster.pid").stat().st_uid == running.data.stat().st_uid
    assert running.binaries.is_relative_to(home_of(running))
    assert (running.binaries / "postgres").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root runs a copy")
def test_a_user_runs_the_installed_binaries(running: EmbeddedPostgres) -> None:
    """Nothing is copied where nothing has to be."""
    assert not running.binaries.is_relative_to(home_of(running))


def test_the_directory_of_data_and_socket_is_closed_to_others(running: EmbeddedPostgres) -> None:
    """The socket needs no password, so only the server's account may come near it."""
    assert running.data.parent.stat().st_mode & 0o077 == 0


def test_the_other_programs_of_postgresql_run_too(running: EmbeddedPostgres) -> None:
    """`binaries` has pgbench and pg_basebackup, and they find their libraries."""
    for program in ("pgbench", "pg_basebackup"):
        answer = subprocess.run(
            [running.binaries / program, "--version"], capture_output=True, text=True, check=True
        )
        assert f"{program} (PostgreSQL)" in answer.stdout


def test_a_temporary_directory_with_a_long_name_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a unix socket has little room, so the server moves to /tmp."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    home = _embedded._make_home(shared=False)
    home.rmdir()
    assert home.parent == Path("/tmp")


def test_root_passes_over_a_temporary_directory_that_is_closed_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where another account runs the server, a TMPDIR of our own is left closed as it is."""
    with tempfile.TemporaryDirectory(prefix="closed-", dir="/tmp") as closed:
        monkeypatch.setattr(tempfile, "tempdir", closed)
        home = _embedded._make_home(shared=True)
        home.rmdir()
        assert home.parent == Path("/tmp")
        assert Path(closed).stat().st_mode & 0o777 == 0o700


def test_forebay_dsn_names_an_existing_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With FOREBAY_DSN no server is started, and the given one cannot be restarted."""
    monkeypatch.setenv("FOREBAY_DSN", "host=elsewhere")
    with server_or_dsn() as server:
        assert server == ExistingServer("host=elsewhere")
        assert not server.restartable


def test_without_forebay_dsn_a_server_is_started_with_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty FOREBAY_DSN counts as none; a given setting wins, the other defaults stay."""
    monkeypatch.setenv("FOREBAY_DSN", "")
    with server_or_dsn({"max_connections": 12, "log_disconnections": True}) as server:
        assert server.restartable
        with psycopg.connect(server.dsn) as connection:
            row = connection.execute(
                "select current_setting('max_connections'), current_setting('fsync'), "
                "current_setting('log_disconnections')"
            ).fetchone()
            assert row == ("12", "off", "on")


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error tells the extra to install and the variable to set."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EmbeddedPostgresError, match=r"forebay\[demo\].*FOREBAY_DSN"):
        EmbeddedPostgres()
