"""What must be true at the end, each statement checked against the server."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from psycopg import Connection

from .bank import Books
from .crowd import Client

_SESSIONS = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement about the run, and whether it holds."""

    holds: bool
    text: str


def check_money(books: Books, coins: int) -> Finding:
    """Are there as many coins as at the start?"""
    if books.balance == coins == books.opening:
        return Finding(True, f"no money lost: {books.accounts:,} accounts hold {coins:,} coins")
    missing = coins - books.balance
    what = f"{missing:,} missing" if missing > 0 else f"{-missing:,} too many"
    return Finding(
        False, f"MONEY LOST: {what}; the balances sum to {books.balance:,}, not {coins:,}"
    )


def check_ledger(books: Books) -> Finding:
    """Does replaying the ledger give every account its balance?"""
    entries = sum(count for count, _ in books.entries.values())
    if books.unbalanced == 0:
        return Finding(True, f"replaying {entries:,} ledger entries gives every balance")
    return Finding(False, f"LEDGER BROKEN: {books.unbalanced:,} balances differ from its replay")


def check_transfers(books: Books, clients: Iterable[Client]) -> Finding:
    """Is every acknowledged transfer in the ledger, and no other?

    A client numbers its transfers 1, 2, 3 and so on without a gap, and the number is part of the
    ledger's key: with n acknowledged, it must have n entries, the highest of them n.
    """
    acknowledged = {client.number: client.acknowledged for client in clients}
    wrong = [
        number
        for number in acknowledged.keys() | books.entries.keys()
        if books.entries.get(number, (0, 0)) != (acknowledged.get(number, 0),) * 2
    ]
    if not wrong:
        total = sum(acknowledged.values())
        return Finding(True, f"each of the {total:,} transfers is booked exactly once")
    return Finding(
        False, f"TRANSFERS LOST: the ledger contradicts {len(wrong)} of {len(acknowledged)} clients"
    )


def check_sessions(conn: Connection[Any], application_name: str, timeout: float) -> Finding:
    """Are all sessions of the closed pools gone from the server within `timeout` seconds?"""
    started = perf_counter()
    while (count := _count_sessions(conn, application_name)) > 0:
        if perf_counter() - started > timeout:
            return Finding(
                False,
                f"CONNECTIONS LEAKED: {count} still open {timeout:g} s after the pools closed",
            )
        time.sleep(0.01)
    return Finding(True, "no connection leaked: the server has none of ours left")


def _count_sessions(conn: Connection[Any], application_name: str) -> int:
    row = conn.execute(_SESSIONS, (application_name,)).fetchone()
    assert row is not None
    return int(row[0])
