"""The clients of the soak: threads and tasks that use a pool well, badly, and are interrupted."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_UNKNOWN

import forebay
import forebay.psycopg2

ACCOUNTS = 40
MONEY = 1000  # on each account at the start

SETUP = f"""
create table account (id int primary key, balance bigint not null);
insert into account select i, {MONEY} from generate_series(1, {ACCOUNTS}) i;
create table tally (client text primary key, transfers bigint not null);
"""

# The mark of whoever has the session, for the length of a transaction.
MARK = """
select current_setting('soak.lease', true), set_config('soak.lease', %s, true), pg_backend_pid()
"""
READ_MARK = "select current_setting('soak.lease', true)"
MOVE = "update account set balance = balance + %s where id = %s"
COUNT = "update tally set transfers = transfers + 1 where client = %s"
SUICIDE = "select pg_terminate_backend(pg_backend_pid())"

TIMEOUTS = (0.0, 0.005, 0.1, 0.5, 0.5, 2.0, 2.0)  # seconds

#: What a client may be answered while everything around it fails.
EXPECTED = (psycopg.Error, psycopg2.Error)
#: The same, once the pools are being closed; psycopg's are no `psycopg.Error` of another kind.
CLOSED = (forebay.PoolClosed, forebay.psycopg2.PoolClosed)


class Change(Exception):
    """A client changes its mind inside its block."""


class Asked(NamedTuple):
    """A client that asks its pool for a connection."""

    at: float
    timeout: float


class Lent(NamedTuple):
    """A connection as its client knows it."""

    client: str
    at: float


class Registry:
    """Who has which connection and which session; called by each client at each checkout."""

    def __init__(self, violation: Callable[[str], None]) -> None:
        self._lock = threading.Lock()
        self._lent: dict[object, Lent] = {}
        self._violation = violation

    def begin(self, key: object, client: str) -> None:
        """A client has been lent something."""
        with self._lock:
            before = self._lent.get(key)
            self._lent[key] = Lent(client, time.monotonic())
        if before is not None:
            self._violation(f"{key} is lent twice: to {before} and to {client}")

    def end(self, key: object, client: str) -> None:
        """It is about to give it back, or to drop it."""
        with self._lock:
            lent = self._lent.pop(key, None)
        if lent is None or lent.client != client:
            self._violation(f"{key}, which {client} has, is taken for that of {lent}")

    def __len__(self) -> int:
        return len(self._lent)


class Client:
    """What threads and tasks have in common: their randomness, their account of what was done."""

    def __init__(self, soak: Any, pool: Any, name: str) -> None:
        self.soak = soak
        self.pool = pool
        self.name = name
        self.rng = random.Random(f"{soak.seed}/{name}")
        self.asked: Asked | None = None
        self.resting = False
        self.acquires = 0
        self.served = 0
        self.served_at = 0.0
        self.confirmed = 0  # transfers that are certainly there
        self.uncertain = 0  # and those whose commit was not answered
        self.longest = 0.0
        self.errors: Counter[str] = Counter()

    def ask(self, timeout: float) -> float:
        """The client asks for a connection now."""
        self.acquires += 1
        self.asked = Asked(time.monotonic(), timeout)
        return timeout

    def answered(self) -> None:
        """It has got one, or an error."""
        asked, self.asked = self.asked, None
        if asked is None:
            return
        took = time.monotonic() - asked.at - asked.timeout
        self.longest = max(self.longest, took)
        if took > self.soak.slack:
            self.soak.violation(
                f"{self.name} was answered {took:.2f} s after its timeout of {asked.timeout} s",
                self.pool,
            )

    @contextmanager
    def having(self, conn: Any) -> Iterator[None]:
        """The client has been lent `conn`, and knows so until it gives it back."""
        self.answered()
        status = conn.info.transaction_status
        keys = [f"connection {id(conn):#x}"]
        if status == TRANSACTION_STATUS_UNKNOWN:
            self.errors["a closed connection was lent"] += 1
        else:
            keys.append(f"session {conn.info.backend_pid}")
        if status not in (TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_UNKNOWN):
            self.soak.violation(f"{self.name} was lent {conn} in a transaction", self.pool)
        registry = self.soak.registry
        for key in keys:
            registry.begin(key, self.name)
        self.served += 1
        self.served_at = time.monotonic()
        try:
            yield
        finally:
            for key in keys:
                registry.end(key, self.name)

    def expect_mark(self, found: str | None, expected: str) -> None:
        """The session bears the mark it should, so nobody else uses it."""
        if (found or "") != expected:
            self.soak.violation(
                f"{self.name} finds the mark {found!r} where {expected!r} should be", self.pool
            )

    def transfer_plan(self) -> list[tuple[int, int]]:
        """Between which accounts to move how much; always locked in the same order."""
        first, second = sorted(self.rng.sample(range(1, ACCOUNTS + 1), 2))
        amount = self.rng.randint(-9, 9)
        return [(amount, first), (-amount, second)]

    def note(self, error: BaseException) -> None:
        """Count an error that the client was answered with."""
        ending = isinstance(error, CLOSED) and self.soak.closing
        code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        kind = getattr(error, "kind", None) or code
        self.errors[type(error).__name__ + (f" ({kind})" if kind else "")] += 1
        if isinstance(error, CLOSED) and not ending:
            self.soak.violation(f"{self.name}: the open pool says {error!r}", self.pool)
        elif not isinstance(error, (*EXPECTED, *CLOSED, Change)):
            self.soak.violation(f"{self.name} was answered {error!r}", self.pool, error)


class ThreadClient(Client):
    """A client that is a thread."""

    def start(self) -> threading.Thread:
        """Begin."""
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self.thread.start()
        return self.thread

    def _run(self) -> None:
        while not self.soak.ending:
            if self.soak.quiet:
                self.resting = True
                time.sleep(0.02)
                continue
            self.resting = False
            try:
                self._choose()()
            except Exception as error:
                self.note(error)
            finally:
                self.answered()
            time.sleep(self.rng.uniform(0, self.soak.pause))

    def _choose(self) -> Callable[[], None]:
        return self.rng.choices(
            [
                self.transfer,
                self.commit_by_hand,
                self.change_mind,
                self.return_in_transaction,
                self.drop,
                self.forsake,
                self.hold,
                self.nest,
                self.kill,
                self.close,
                self.hand_over,
            ],
            weights=[40, 10, 5, 5, 2, 2, 3, 5, 1, 1, 2],
        )[0]

    # What it does ---------------------------------------------------------------------------

    def transfer(self) -> None:
        """Move money in a block."""
        with self.pool.connection(self.ask(self._timeout())) as conn:
            with self.having(conn):
                self._move(conn)
            self.uncertain += 1
        self.uncertain -= 1
        self.confirmed += 1

    def commit_by_hand(self) -> None:
        """Move money with a bare getconn()."""
        conn = self.pool.getconn(self.ask(self._timeout()))
        try:
            with self.having(conn):
                self._move(conn)
                self.uncertain += 1
                conn.commit()
                self.uncertain -= 1
                self.confirmed += 1
        finally:
            self.pool.putconn(conn)

    def change_mind(self) -> None:
        """Begin to move money, then raise."""
        with self.pool.connection(self.ask(self._timeout())) as conn, self.having(conn):
            self._move(conn)
            raise Change

    def return_in_transaction(self) -> None:
        """Begin to move money, then return the connection as it is."""
        conn = self.pool.getconn(self.ask(self._timeout()))
        try:
            with self.having(conn):
                self._move(conn)
        finally:
            self.pool.putconn(conn)

    def drop(self) -> None:
        """Forget the connection."""
        conn = self.pool.getconn(self.ask(self._timeout()))
        with self.having(conn):
            if self.rng.random() < 0.5:
                self._ask_mark(conn)

    def forsake(self) -> None:
        """Forget the lease, while something still refers to the connection."""
        lease = self.pool.connection(self.ask(self._timeout()))
        conn = lease.__enter__()
        with self.having(conn):
            if self.rng.random() < 0.5:
                self._ask_mark(conn)
        del lease
        time.sleep(self.rng.uniform(0, 1.5))

    def hold(self) -> None:
        """Keep a connection for long, idle or in a query."""
        seconds = self.rng.uniform(0.2, 1.2)
        with self.pool.connection(self.ask(self._timeout())) as conn, self.having(conn):
            if self.rng.random() < 0.5:
                self._execute(conn, "select pg_sleep(%s)", seconds)
            else:
                time.sleep(seconds)

    def nest(self) -> None:
        """Ask for a second connection while holding one."""
        with self.pool.connection(self.ask(self._timeout())) as outer, self.having(outer):
            with self.pool.connection(self.ask(0.3)) as inner, self.having(inner):
                self._ask_mark(inner)
            self._ask_mark(outer)

    def kill(self) -> None:
        """Have the server end one's own session."""
        with self.pool.connection(self.ask(self._timeout())) as conn, self.having(conn):
            self._execute(conn, SUICIDE)

    def close(self) -> None:
        """Close the connection that is lent."""
        with self.pool.connection(self.ask(self._timeout())) as conn, self.having(conn):
            conn.close()

    def hand_over(self) -> None:
        """Have another thread return the connection."""
        conn = self.pool.getconn(self.ask(self._timeout()))
        try:
            with self.having(conn):
                self._ask_mark(conn)
        finally:
            other = threading.Thread(target=self.pool.putconn, args=(conn,))
            other.start()
            other.join()

    # Its statements -------------------------------------------------------------------------

    def _timeout(self) -> float:
        return self.rng.choice(TIMEOUTS)

    def _move(self, conn: Any) -> None:
        mark = self._ask_mark(conn)
        for amount, account in self.transfer_plan():
            self._execute(conn, MOVE, amount, account)
        self._execute(conn, COUNT, self.name)
        self.expect_mark(self._execute(conn, READ_MARK)[0], mark)

    def _ask_mark(self, conn: Any) -> str:
        mark = f"{self.name}-{self.served}"
        found, _, pid = self._execute(conn, MARK, mark)
        self.expect_mark(found, "")
        if pid != conn.info.backend_pid:
            self.soak.violation(f"{conn} talks to session {pid}", self.pool)
        return mark

    def _execute(self, conn: Any, query: str, *parameters: Any) -> Any:
        if isinstance(conn, psycopg.Connection):
            cursor: Any = conn.execute(query, parameters)
        else:
            conn.notifies.clear()
            cursor = conn.cursor()
            cursor.execute(query, parameters)
        return cursor.fetchone() if cursor.description else None


class TaskClient(Client):
    """A client that is a task, and starts another one for each thing it does, to cancel it."""

    async def run(self) -> None:
        """Go on until the soak ends."""
        while not self.soak.ending:
            if self.soak.quiet:
                self.resting = True
                await asyncio.sleep(0.02)
                continue
            self.resting = False
            await self._step()
            await asyncio.sleep(self.rng.uniform(0, self.soak.pause))

    async def _step(self) -> None:
        task = asyncio.create_task(self._perform(self._choose()), name=self.name)
        if self.rng.random() < 0.25:
            await asyncio.wait({task}, timeout=self.rng.uniform(0, 0.03))
            # From here on it has as long as psycopg takes to be cancelled: that is `patience`.
            self.asked = None
            task.cancel()
            await asyncio.wait({task}, timeout=self.soak.patience)
            if not task.done():
                self.soak.violation(
                    f"{self.name}: cancelled {self.soak.patience} s ago, still in"
                    f" {task.get_stack()}",
                    self.pool,
                )
        await asyncio.wait({task})
        if task.cancelled():
            self.errors["CancelledError"] += 1

    async def _perform(self, act: Any) -> None:
        try:
            await act()
        except Exception as error:
            self.note(error)
        finally:
            self.answered()

    def _choose(self) -> Any:
        return self.rng.choices(
            [
                self.transfer,
                self.commit_by_hand,
                self.change_mind,
                self.return_in_transaction,
                self.drop,
                self.forsake,
                self.hold,
                self.nest,
                self.kill,
                self.close,
            ],
            weights=[40, 10, 5, 5, 2, 2, 3, 5, 1, 1],
        )[0]

    # What it does ---------------------------------------------------------------------------

    async def transfer(self) -> None:
        """Move money in a block."""
        async with self.pool.connection(self.ask(self._timeout())) as conn:
            with self.having(conn):
                await self._move(conn)
            self.uncertain += 1
        self.uncertain -= 1
        self.confirmed += 1

    async def commit_by_hand(self) -> None:
        """Move money with a bare getconn()."""
        conn = await self.pool.getconn(self.ask(self._timeout()))
        try:
            with self.having(conn):
                await self._move(conn)
                self.uncertain += 1
                await conn.commit()
                self.uncertain -= 1
                self.confirmed += 1
        finally:
            await self.pool.putconn(conn)

    async def change_mind(self) -> None:
        """Begin to move money, then raise."""
        async with self.pool.connection(self.ask(self._timeout())) as conn:
            with self.having(conn):
                await self._move(conn)
                raise Change

    async def return_in_transaction(self) -> None:
        """Begin to move money, then return the connection as it is."""
        conn = await self.pool.getconn(self.ask(self._timeout()))
        try:
            with self.having(conn):
                await self._move(conn)
        finally:
            await self.pool.putconn(conn)

    async def drop(self) -> None:
        """Forget the connection."""
        conn = await self.pool.getconn(self.ask(self._timeout()))
        with self.having(conn):
            if self.rng.random() < 0.5:
                await self._ask_mark(conn)

    async def forsake(self) -> None:
        """Forget the lease, while something still refers to the connection."""
        lease = self.pool.connection(self.ask(self._timeout()))
        conn = await lease.__aenter__()
        with self.having(conn):
            if self.rng.random() < 0.5:
                await self._ask_mark(conn)
        del lease
        await asyncio.sleep(self.rng.uniform(0, 1.5))

    async def hold(self) -> None:
        """Keep a connection for long, idle or in a query."""
        seconds = self.rng.uniform(0.2, 1.2)
        async with self.pool.connection(self.ask(self._timeout())) as conn:
            with self.having(conn):
                if self.rng.random() < 0.5:
                    await self._execute(conn, "select pg_sleep(%s)", seconds)
                else:
                    await asyncio.sleep(seconds)

    async def nest(self) -> None:
        """Ask for a second connection while holding one."""
        async with self.pool.connection(self.ask(self._timeout())) as outer:
            with self.having(outer):
                async with self.pool.connection(self.ask(0.3)) as inner:
                    with self.having(inner):
                        await self._ask_mark(inner)
                await self._ask_mark(outer)

    async def kill(self) -> None:
        """Have the server end one's own session."""
        async with self.pool.connection(self.ask(self._timeout())) as conn:
            with self.having(conn):
                await self._execute(conn, SUICIDE)

    async def close(self) -> None:
        """Close the connection that is lent."""
        async with self.pool.connection(self.ask(self._timeout())) as conn:
            with self.having(conn):
                await conn.close()

    # Its statements -------------------------------------------------------------------------

    def _timeout(self) -> float:
        return self.rng.choice(TIMEOUTS)

    async def _move(self, conn: Any) -> None:
        mark = await self._ask_mark(conn)
        for amount, account in self.transfer_plan():
            await self._execute(conn, MOVE, amount, account)
        await self._execute(conn, COUNT, self.name)
        self.expect_mark((await self._execute(conn, READ_MARK))[0], mark)

    async def _ask_mark(self, conn: Any) -> str:
        mark = f"{self.name}-{self.served}"
        found, _, pid = await self._execute(conn, MARK, mark)
        self.expect_mark(found, "")
        if pid != conn.info.backend_pid:
            self.soak.violation(f"{conn} talks to session {pid}", self.pool)
        return mark

    async def _execute(self, conn: Any, query: str, *parameters: Any) -> Any:
        cursor = await conn.execute(query, parameters)
        return await cursor.fetchone() if cursor.description else None
