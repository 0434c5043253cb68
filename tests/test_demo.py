"""The demo as a program, and the parts of it that could be wrong without anybody seeing it."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, Connection, sql
from rich.console import Console

from forebay.demo.bank import Bank, Books, Transfer
from forebay.demo.crowd import Client, TaskCrowd, ThreadCrowd, read_gauge
from forebay.demo.load import Load
from forebay.demo.meter import Done, Gauge, Meter, Traffic, quantile
from forebay.demo.proof import Finding, check_ledger, check_money, check_transfers
from forebay.demo.report import check_load
from forebay.demo.screen import Frame, Lane, LiveScreen, PlainScreen, Report, sparkline
from forebay.pool import ConnectionPool

SMALL = ("--seconds", "2", "--threads", "20", "--tasks", "30", "--connections", "4")
FIRST_SECOND = "tx/s"
CUT = "all backends are terminated"


@contextmanager
def started_demo(dsn: str | None) -> Iterator[subprocess.Popen[str]]:
    """Start a small demo with its output in a pipe; on its own server when `dsn` is None."""
    environment = {name: text for name, text in os.environ.items() if name != "FOREBAY_DSN"}
    if dsn is not None:
        environment["FOREBAY_DSN"] = dsn
    command = [sys.executable, "-m", "forebay", "demo", *SMALL]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read the demo's output up to the line that contains `words`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"{words!r} never came:\n{''.join(lines)}")


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Read the rest of the output and return it with the exit code."""
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def demo_schemas(conn: Connection[Any]) -> list[str]:
    """Name the schemas that demos have made on the server."""
    rows = conn.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'forebay-demo-%'")
    return [name for (name,) in rows]


@pytest.fixture
def admin(dsn: str) -> Iterator[Connection[Any]]:
    """Give a connection of the test's own."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def bank(admin: Connection[Any]) -> Iterator[Bank]:
    """Give a bank of ten accounts with a hundred coins each."""
    bank = Bank("forebay_test_bank", accounts=10, opening=100)
    bank.drop(admin)
    bank.create(admin)
    yield bank
    bank.drop(admin)


class TestTheProgram:
    @pytest.mark.embedded
    def test_restarts_its_own_server_and_proves_that_nothing_was_lost(self) -> None:
        """Without a terminal it prints plain lines and ends with 0."""
        with started_demo(None) as process:
            code, output = finish(process)
        assert code == 0, output
        assert "the server restarts under full load" in output
        assert "ok   no money lost: 1,000 accounts hold 1,000,000 coins" in output
        assert "is booked exactly once" in output
        assert "gives every balance" in output
        assert "ok   no connection leaked" in output
        assert "the pool is faster by" in output
        assert "FAIL" not in output
        assert not [
            char for char in output if not (char.isascii() and (char.isprintable() or char == "\n"))
        ]

    def test_leaves_nothing_on_a_server_that_is_not_its_own(
        self, dsn: str, admin: Connection[Any]
    ) -> None:
        """There it terminates the backends, says so, and removes its bank."""
        with started_demo(dsn) as process:
            code, output = finish(process)
        assert code == 0, output
        assert CUT in output
        assert demo_schemas(admin) == []

    def test_notices_one_stolen_coin(self, dsn: str, admin: Connection[Any]) -> None:
        """A coin taken from an account under load is missed at the end."""
        with started_demo(dsn) as process:
            read_until(process, "the bank opens")
            (schema,) = demo_schemas(admin)
            table = sql.Identifier(schema, "account")
            theft = sql.SQL("UPDATE {} SET balance = balance - 1 WHERE id = 7 AND balance > 0")
            assert admin.execute(theft.format(table)).rowcount == 1
            code, output = finish(process)
        assert code == 1, output
        assert "FAIL MONEY LOST: 1 missing; the balances sum to 999,999, not 1,000,000" in output
        assert "FAIL LEDGER BROKEN: 1 balances differ from its replay" in output

    def test_notices_a_connection_that_stays_open(self, dsn: str, admin: Connection[Any]) -> None:
        """A session under the pools' name that outlives them counts as leaked."""
        with started_demo(dsn) as process:
            read_until(process, CUT)
            read_until(process, "first transfer")
            (name,) = demo_schemas(admin)
            with psycopg.connect(dsn, application_name=name):
                code, output = finish(process)
        assert code == 1, output
        assert "FAIL CONNECTIONS LEAKED: 1 still open" in output
        assert "ok   no money lost" in output

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stops_cleanly_on_a_signal(
        self, number: signal.Signals, dsn: str, admin: Connection[Any]
    ) -> None:
        """The exit code is 128 and the signal, there is no traceback, and the bank is gone."""
        with started_demo(dsn) as process:
            read_until(process, FIRST_SECOND)
            process.send_signal(number)
            code, output = finish(process)
        assert code == 128 + number, output
        assert "Traceback" not in output
        assert demo_schemas(admin) == []

    def test_says_what_to_install_when_something_is_missing(self) -> None:
        """Without rich there is one line, and it has the command."""
        program = (
            "import sys; sys.modules['rich'] = None;"
            "from forebay.__main__ import main; sys.exit(main(['demo']))"
        )
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert result.returncode == 2
        assert result.stderr == (
            "forebay demo: rich is not installed: pip install 'forebay[demo]'\n"
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--seconds", "soon"], "expected seconds from 1 to 3600, got 'soon'"),
            (["--connections", "1"], "expected a whole number from 2 to 100, got '1'"),
            (["--threads", "-5"], "expected a whole number from 1 to 2000, got '-5'"),
        ],
    )
    def test_refuses_a_bad_argument(self, arguments: list[str], message: str) -> None:
        """The error says what was given and what was expected."""
        command = [sys.executable, "-m", "forebay", "demo", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert message in result.stderr


class TestTheBank:
    def test_books_a_transfer_once_however_often_it_is_sent(
        self, bank: Bank, admin: Connection[Any]
    ) -> None:
        """The second attempt says so and moves nothing."""
        order = Transfer(id=1 << 32 | 1, source=3, target=2, amount=40)
        assert bank.transfer(admin, order)
        assert not bank.transfer(admin, order)
        assert balances(admin, 2, 3) == [140, 60]

    def test_books_on_asyncio_what_it_books_for_threads(
        self, bank: Bank, admin: Connection[Any], dsn: str
    ) -> None:
        """Both kinds of connection move the money, and know each other's entries."""
        order = Transfer(id=1 << 32 | 1, source=3, target=2, amount=40)

        async def attempt() -> bool:
            async with await AsyncConnection.connect(dsn) as conn:
                return await bank.transfer_async(conn, order)

        assert asyncio.run(attempt())
        assert not bank.transfer(admin, order)
        assert balances(admin, 2, 3) == [140, 60]

    def test_moves_no_more_than_there_is(self, bank: Bank, admin: Connection[Any]) -> None:
        """An account is emptied, never overdrawn."""
        assert bank.transfer(admin, Transfer(id=1, source=0, target=1, amount=999))
        assert balances(admin, 0, 1) == [0, 200]

    def test_reads_its_books_from_the_server(self, bank: Bank, admin: Connection[Any]) -> None:
        """The sums, the replay and each client's entries are as booked."""
        for sequence in (1, 2):
            bank.transfer(admin, Transfer(id=5 << 32 | sequence, source=0, target=1, amount=10))
        assert bank.read_books(admin) == Books(10, 1_000, 1_000, 0, {5: (2, 2)})

    def test_settles_a_commit_of_unknown_outcome_by_sending_it_again(
        self, bank: Bank, admin: Connection[Any], dsn: str
    ) -> None:
        """The commit came through, the answer did not: the client finds its transfer booked."""
        crowd = ThreadCrowd("one", [Client(1, 10)], bank, 1, lambda: cut_after_commit(dsn, crowd))
        with crowd:
            assert crowd.join(10.0) == 0
        assert [failure.unknown for failure in crowd.traffic.failures] == [True]
        assert crowd.traffic.settled == [True]
        assert crowd.clients[0].acknowledged == 1
        assert bank.read_books(admin).entries == {1: (1, 1)}

    @pytest.mark.parametrize("kind", [ThreadCrowd, TaskCrowd])
    def test_a_client_that_crashes_is_found(self, bank: Bank, kind: type[Any]) -> None:
        """An error that no client expects ends the load at once and is in the findings."""
        crowd = kind("one", [Client(1, 10)], bank, 1, lambda: nullcontext(Broken()))
        load = Load([crowd], PlainScreen(Console(file=io.StringIO())), seconds=60)
        load.run()
        assert load.ended - load.started < 30
        assert "CLIENT CRASHED" in check_load(load)[0].text
        assert "not what a pool should do" in check_load(load)[0].text


class Broken:
    """A source with a fault that is no database error."""

    def connection(self) -> AbstractContextManager[Any]:
        """Fail."""
        raise RuntimeError("not what a pool should do")


def balances(conn: Connection[Any], *accounts: int) -> list[int]:
    """Read the balances of some accounts of the test's bank."""
    query = "SELECT balance FROM forebay_test_bank.account WHERE id = ANY(%s) ORDER BY id"
    return [balance for (balance,) in conn.execute(query, (list(accounts),))]


class CutAfterCommit:
    """A source whose first answer to a commit is lost; then its only client is sent home."""

    def __init__(self, dsn: str, crowd: ThreadCrowd) -> None:
        self._dsn = dsn
        self._crowd = crowd
        self._cut = False

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        with psycopg.connect(self._dsn) as conn:
            yield conn
        if not self._cut:
            self._cut = True
            raise psycopg.OperationalError("the answer is lost")
        self._crowd.finish()


def cut_after_commit(dsn: str, crowd: ThreadCrowd) -> AbstractContextManager[CutAfterCommit]:
    """Open a source for a crowd of one client."""
    return nullcontext(CutAfterCommit(dsn, crowd))


class TestTheProof:
    def test_holds_for_books_in_order(self) -> None:
        """Nothing is found where nothing is wrong."""
        assert [finding.holds for finding in check(Books(10, 1_000, 1_000, 0, {1: (3, 3)}))] == [
            True,
            True,
            True,
        ]

    @pytest.mark.parametrize(
        ("books", "which", "words"),
        [
            (Books(10, 1_000, 1_001, 0, {1: (3, 3)}), 0, "1 too many"),
            (Books(10, 1_000, 997, 0, {1: (3, 3)}), 0, "3 missing"),
            (Books(10, 1_000, 1_000, 2, {1: (3, 3)}), 1, "2 balances differ"),
            (Books(10, 1_000, 1_000, 0, {1: (2, 3)}), 2, "contradicts 1 of 1 clients"),
            (Books(10, 1_000, 1_000, 0, {1: (4, 4)}), 2, "contradicts 1 of 1 clients"),
            (Books(10, 1_000, 1_000, 0, {}), 2, "contradicts 1 of 1 clients"),
            (Books(10, 1_000, 1_000, 0, {1: (3, 3), 9: (1, 1)}), 2, "contradicts 1 of 1 clients"),
        ],
    )
    def test_fails_for_books_that_are_wrong(self, books: Books, which: int, words: str) -> None:
        """Coins too few or too many, a wrong balance, an entry lost, invented or a stranger's."""
        finding = check(books)[which]
        assert not finding.holds
        assert words in finding.text


def check(books: Books) -> list[Finding]:
    """Check books against a thousand coins and a client that knows of three transfers."""
    client = Client(1, 10)
    client.acknowledged = 3
    return [check_money(books, 1_000), check_ledger(books), check_transfers(books, [client])]


class TestTheNumbers:
    def test_quantiles_are_measured_values(self) -> None:
        """p50 and p99 of 1 to 100, and 0 for nothing."""
        values = [float(value) for value in range(100, 0, -1)]
        assert (quantile(values, 0.5), quantile(values, 0.99)) == (50.0, 99.0)
        assert quantile([], 0.5) == 0.0

    def test_the_meter_sorts_transfers_into_buckets(self) -> None:
        """Old ones leave the live rate and stay in the curve."""
        traffic = Traffic()
        meter = Meter(traffic, started=100.0, bucket=0.5)
        traffic.done += [Done(100.0, 100.1, 100.2), Done(100.0, 100.3, 100.6)]
        meter.update(101.0)
        traffic.done.append(Done(101.0, 101.4, 101.5))
        meter.update(101.9)
        assert meter.buckets == [1, 1, 0, 1]
        assert meter.rate(101.9) == 1.0
        assert meter.wait(0.5) == pytest.approx(0.4)

    def test_a_success_counts_as_recovery_only_on_a_new_connection(self) -> None:
        """A transfer that had its connection before the cut proves nothing."""
        traffic = Traffic()
        traffic.done += [Done(1.0, 1.9, 2.1), Done(1.0, 2.3, 2.4)]
        assert traffic.first_success_since(2.0) == 2.4

    def test_the_gauge_shows_what_the_pool_says(self, dsn: str) -> None:
        """It is read from the pool's own repr."""
        with ConnectionPool(dsn, min_size=3, max_size=3) as pool:
            pool.wait()
            with pool.connection():
                assert read_gauge(pool, 3) == Gauge(size=3, idle=2, lent=1, opening=0, waiting=0)

    def test_the_curve_is_as_high_as_the_highest_count(self) -> None:
        """Zero is blank, and whatever is not zero shows."""
        assert sparkline([0, 1, 50, 100]) == " ▁▄█"
        assert sparkline([]) == ""


class TestTheDrawing:
    @pytest.mark.parametrize("width", [80, 120])
    def test_fits_the_terminal(self, width: int) -> None:
        """The panel and the table have their place in 80 columns, and in more."""
        text = drawn(width, draw_everything)
        assert max(len(line) for line in text.splitlines()) <= width
        assert "███ ███ ░░░ ▒▒▒" in text
        headlines = [line for line in text.splitlines() if "24,690 tx/s" in line]
        assert headlines
        assert all("99,999,999 transfers" in line for line in headlines)
        assert "✘ MONEY LOST" in text


def drawn(width: int, draw: Callable[[LiveScreen], None]) -> str:
    """Draw on a terminal of the given width and return all it has shown, line by line."""
    console = Console(
        file=io.StringIO(), width=width, height=60, force_terminal=True, color_system=None
    )
    with LiveScreen(console) as screen:
        draw(screen)
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue()).replace("\r", "\n")


def draw_everything(screen: LiveScreen) -> None:
    """Draw a frame with every kind of connection, a long story and a report."""
    gauge = Gauge(size=4, idle=1, lent=2, opening=1, waiting=9_996)
    lanes = [Lane("10000 threads", gauge, 12_345.0, 1.0, 12.0, 9_999)] * 2
    screen.begin("a test")
    screen.say("word " * 50)
    screen.draw(Frame(3599.9, 3600, lanes, 99_999_999, list(range(50)), range(40, 42)))
    rows = [("first transfer after the server is back", ["999 ms"] * 3)]
    columns = ["10000 threads", "10000 tasks", "together"]
    screen.report(Report(columns, [rows], [Finding(False, "MONEY LOST: all of it")]))
