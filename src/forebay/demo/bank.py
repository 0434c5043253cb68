"""A bank of accounts in PostgreSQL, where each transfer is booked at most once.

A transfer and its ledger entry are written in one transaction. The entry's key is the
transfer's own number, so a client whose commit was cut off, and who cannot know what became of
it, simply sends the same transfer again: a transfer that is already in the ledger moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import AsyncConnection, Connection, sql

SEQUENCE_BITS = 32

_TABLES: LiteralString = """
CREATE SCHEMA {schema};
CREATE TABLE {schema}.account (
    id integer PRIMARY KEY,
    opening bigint NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0)
) WITH (fillfactor = 50);
CREATE TABLE {schema}.ledger (
    id bigint PRIMARY KEY,
    source integer NOT NULL,
    target integer NOT NULL CHECK (target <> source),
    amount bigint NOT NULL CHECK (amount >= 0)
);
"""

_FILL: LiteralString = """
INSERT INTO {schema}.account
SELECT id, %(opening)s, %(opening)s FROM generate_series(0, %(accounts)s::integer - 1) AS id
"""

# Always in the order of the keys: two transfers that share accounts cannot deadlock.
_LOCK: LiteralString = """
SELECT id, balance FROM {schema}.account
WHERE id IN (%(source)s, %(target)s) ORDER BY id FOR UPDATE
"""

_BOOK: LiteralString = """
WITH booked AS (
    INSERT INTO {schema}.ledger (id, source, target, amount)
    VALUES (%(id)s, %(source)s, %(target)s, %(amount)s)
    ON CONFLICT (id) DO NOTHING
    RETURNING target, amount
)
UPDATE {schema}.account AS account
SET balance = balance + CASE WHEN account.id = booked.target THEN amount ELSE -amount END
FROM booked
WHERE account.id IN (%(source)s, %(target)s)
"""

_REPLAY: LiteralString = """
WITH movement AS (
    SELECT target AS id, amount FROM {schema}.ledger
    UNION ALL
    SELECT source, -amount FROM {schema}.ledger
), replayed AS (
    SELECT id, sum(amount) AS moved FROM movement GROUP BY id
)
SELECT count(*), sum(opening)::bigint, sum(balance)::bigint,
       count(*) FILTER (WHERE balance <> opening + coalesce(moved, 0))
FROM {schema}.account LEFT JOIN replayed USING (id)
"""

_ENTRIES: LiteralString = """
SELECT id >> 32, count(*), max(id & 4294967295) FROM {schema}.ledger GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class Transfer:
    """An order to move up to `amount` coins; `id` is the same on every attempt."""

    id: int
    source: int
    target: int
    amount: int


@dataclass(frozen=True, slots=True)
class Books:
    """What the server says at the end.

    `entries` maps a client's number to (ledger entries of that client, its highest sequence).
    `unbalanced` counts the accounts whose balance is not what the ledger makes of its opening.
    """

    accounts: int
    opening: int
    balance: int
    unbalanced: int
    entries: dict[int, tuple[int, int]]


class Bank:
    """The statements of one bank, whose tables live in a schema of their own."""

    def __init__(self, schema: str, *, accounts: int = 1_000, opening: int = 1_000) -> None:
        def statement(text: LiteralString) -> bytes:
            return sql.SQL(text).format(schema=sql.Identifier(schema)).as_bytes(None)

        self.accounts = accounts
        self.opening = opening
        self._tables = statement(_TABLES)
        self._fill = statement(_FILL)
        self._lock = statement(_LOCK)
        self._book = statement(_BOOK)
        self._replay = statement(_REPLAY)
        self._entries = statement(_ENTRIES)
        self._drop = statement("DROP SCHEMA IF EXISTS {schema} CASCADE")

    @property
    def coins(self) -> int:
        """The sum of all balances, now and always."""
        return self.accounts * self.opening

    def create(self, conn: Connection[Any]) -> None:
        """Create the tables and open the accounts."""
        with conn.transaction():
            conn.execute(self._tables)
            conn.execute(self._fill, {"accounts": self.accounts, "opening": self.opening})

    def drop(self, conn: Connection[Any]) -> None:
        """Remove the bank from the server."""
        conn.execute(self._drop)

    def transfer(self, conn: Connection[Any], order: Transfer) -> bool:
        """Book `order` in the connection's transaction; False if it is in the ledger already."""
        balances = conn.execute(self._lock, _keys(order)).fetchall()
        return conn.execute(self._book, _booking(order, balances)).rowcount > 0

    async def transfer_async(self, conn: AsyncConnection[Any], order: Transfer) -> bool:
        """Do what `transfer` does, on an asyncio connection."""
        balances = await (await conn.execute(self._lock, _keys(order))).fetchall()
        return (await conn.execute(self._book, _booking(order, balances))).rowcount > 0

    def read_books(self, conn: Connection[Any]) -> Books:
        """Sum the balances and replay the ledger, on the server, in one snapshot."""
        with conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            row = conn.execute(self._replay).fetchone()
            entries = conn.execute(self._entries).fetchall()
        assert row is not None
        accounts, opening, balance, unbalanced = row
        by_client = {client: (count, last) for client, count, last in entries}
        return Books(accounts, opening, balance, unbalanced, by_client)


def _keys(order: Transfer) -> dict[str, int]:
    return {"source": order.source, "target": order.target}


def _booking(order: Transfer, balances: list[Any]) -> dict[str, int]:
    """Move what was asked for, or what the account has left if that is less."""
    amount = min(order.amount, dict(balances)[order.source])
    return {"id": order.id, "source": order.source, "target": order.target, "amount": amount}
