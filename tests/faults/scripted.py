"""A server that plays scripts: protocol 3 by hand, for what no real server says on demand."""

from __future__ import annotations

import asyncio
import itertools
import math
import ssl
import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from . import wire
from .listener import Client, Listener

__all__ = [
    "BAD_PASSWORD",
    "DEFAULT_PARAMETERS",
    "GERMAN",
    "NO_DATABASE",
    "NO_HBA_ENTRY",
    "NO_ROLE",
    "READ_ONLY",
    "SHUTTING_DOWN",
    "STARTING_UP",
    "TERMINATED",
    "TOO_MANY",
    "Failure",
    "Script",
    "ScriptedServer",
]


@dataclass(frozen=True)
class Failure:
    """An error of the server's: an ERROR answers a query, a FATAL ends the session."""

    code: str
    """SQLSTATE."""
    message: str
    severity: str = "FATAL"


TERMINATED = Failure("57P01", "terminating connection due to administrator command")
TOO_MANY = Failure("53300", "sorry, too many clients already")
STARTING_UP = Failure("57P03", "the database system is starting up")
SHUTTING_DOWN = Failure("57P03", "the database system is shutting down")
BAD_PASSWORD = Failure("28P01", 'password authentication failed for user "postgres"')
NO_DATABASE = Failure("3D000", 'database "nowhere" does not exist')
NO_ROLE = Failure("28000", 'role "nobody" does not exist')
NO_HBA_ENTRY = Failure(
    "28000",
    'no pg_hba.conf entry for host "127.0.0.1", user "postgres", database "postgres", '
    "no encryption",
)
READ_ONLY = Failure("25006", "cannot execute INSERT in a read-only transaction", "ERROR")

GERMAN: Mapping[Failure, Failure] = {
    TERMINATED: Failure(
        "57P01", "Verbindung wird abgebrochen aufgrund von Anweisung des Administrators"
    ),
    TOO_MANY: Failure("53300", "tut mir leid, schon zu viele Verbindungen"),
    STARTING_UP: Failure("57P03", "das Datenbanksystem startet"),
    SHUTTING_DOWN: Failure("57P03", "das Datenbanksystem fährt herunter"),
    BAD_PASSWORD: Failure(
        "28P01", "Passwort-Authentifizierung für Benutzer »postgres« fehlgeschlagen"
    ),
    NO_DATABASE: Failure("3D000", "Datenbank »nowhere« existiert nicht"),
    NO_ROLE: Failure("28000", "Rolle »nobody« existiert nicht"),
    NO_HBA_ENTRY: Failure(
        "28000",
        "kein pg_hba.conf-Eintrag für Host »127.0.0.1«, Benutzer »postgres«, "
        "Datenbank »postgres«, keine Verschlüsselung",
    ),
    READ_ONLY: Failure(
        "25006", "INSERT kann nicht in einer Read-Only-Transaktion ausgeführt werden", "FEHLER"
    ),
}
"""The same failures as a server says them that speaks German."""

DEFAULT_PARAMETERS: Mapping[str, str] = {
    "server_version": "18.0",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "application_name": "",
    "default_transaction_read_only": "off",
    "in_hot_standby": "off",
    "is_superuser": "on",
    "session_authorization": "postgres",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
}
"""What every session is told at its start."""


@dataclass(frozen=True)
class Script:
    """How one connection is started up."""

    delay: float = 0.0
    """Seconds before the start-up packet is answered; `math.inf`: it never is."""
    failure: Failure | None = None
    """Refuse the start-up with this."""
    password: str | None = None
    """Ask for the password in clear text, and refuse another one with `BAD_PASSWORD`."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Reported over `DEFAULT_PARAMETERS`."""
    storm: int = 0
    """So many more ParameterStatus messages before the session is ready."""


class ScriptedServer(Listener):
    """Accepts sessions as its script says, and answers a few queries.

    It knows the empty query, the statements of transactions, SET and its like, LISTEN, ``select
    <number>``, ``show <parameter>``, ``select pg_backend_pid()``, ``select pg_is_in_recovery()``,
    and what `answers` has; to all else it answers with an error.

    Args:
        script: of the connections from now on; may be assigned later.
        tls: when given, clients that ask for TLS get it.
    """

    def __init__(self, script: Script | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.script = script or Script()
        self.answers: dict[str, wire.Value | Failure] = {}
        """Query, in lower case with single spaces: its one row of one column, or its failure."""
        self.queries: list[str] = []
        """Every query as it was asked, in order."""
        self.cancels = 0
        """Cancel requests received; they are not granted."""
        self.recovering = False
        """Whether we say that we are a standby; set by `standby`."""
        self._next_scripts: deque[Script] = deque()
        self._sessions: set[Session] = set()
        self._muted = False
        self._pids = itertools.count(1)

    @property
    def sessions(self) -> int:
        """Sessions that were started up and have not ended."""
        return len(self._sessions)

    def dsn(self, base: str = "user=postgres dbname=postgres", **parameters: Any) -> str:
        """Return the conninfo `base` with the address of this port, and `parameters` set."""
        return super().dsn(base, **parameters)

    def then(self, *scripts: Script) -> None:
        """Let the next connections play these, one each, and those after them `script` again."""
        self._next_scripts.extend(scripts)

    # --- verbs: each is for all sessions, and returns when the bytes are sent -------------

    def terminate(self, failure: Failure = TERMINATED) -> None:
        """Say `failure` and end the sessions."""
        self._do(self._terminate(failure))

    def half_message(self) -> None:
        """Send the start of a message, and never its end."""
        self.send(wire.notification(0, "forebay", "never to arrive")[:9])

    def notify(self, channel: str = "forebay", payload: str = "", times: int = 1) -> None:
        """Send notifications."""
        self.send(wire.notification(0, channel, payload) * times)

    def notice(self, message: str = "a notice", times: int = 1) -> None:
        """Send notices."""
        self.send(wire.report("N", "NOTICE", "00000", message) * times)

    def parameter(self, name: str, value: str, times: int = 1) -> None:
        """Report a parameter."""
        self.send(wire.parameter_status(name, value) * times)

    def parameter_storm(self, times: int = 1000) -> None:
        """Report `times` changes of ``application_name``."""
        self.send(_storm(times))

    def standby(self, yes: bool) -> None:
        """Become a standby, or a primary: sessions are told, and new ones learn it."""
        self.recovering = yes
        self.parameter("in_hot_standby", _on(yes))

    def mute(self) -> None:
        """Answer no query; `unmute` answers those that wait."""
        self._muted = True

    def unmute(self) -> None:
        """Answer queries again."""
        self._muted = False
        self._do(self._flush())

    def send(self, data: bytes) -> None:
        """Send raw bytes."""
        self._do(self._send(data))

    async def _send(self, data: bytes) -> None:
        for session in self._sessions:
            session.unsent.append(data)
        await self._flush(answers=False)

    async def _terminate(self, failure: Failure) -> None:
        await self._send(_error(failure))
        await self._end(Client.hang_up)

    async def _flush(self, *, answers: bool = True) -> None:
        for session in list(self._sessions):
            self._deliver(session, answers=answers)

    async def _heal(self) -> None:
        await super()._heal()
        self._muted = False
        await self._flush()

    def _deliver(self, session: Session, *, answers: bool = True) -> None:
        """Send what `session` has to say, as far as we may speak."""
        if self._dark:
            return
        outgoing = [session.unsent]
        if answers and not self._muted:
            outgoing.append(session.answered)
        for data in outgoing:
            session.client.write(b"".join(data))
            data.clear()

    # --- sessions -----------------------------------------------------------------------

    async def _serve(self, client: Client) -> None:
        packet = await self._greet(client)
        if wire.code_of(packet) == wire.CANCEL_REQUEST:
            self.cancels += 1
            return
        script = self._next_scripts.popleft() if self._next_scripts else self.script
        if not await _patient(client, script.delay):
            return
        failure = script.failure or await _refusal(client, script)
        if failure is not None:
            client.write(_error(failure))
            return
        session = Session(self, client, next(self._pids))
        session.unsent.append(session.welcome(script))
        self._sessions.add(session)
        try:
            self._deliver(session)
            await self._converse(session)
        finally:
            self._sessions.discard(session)

    async def _converse(self, session: Session) -> None:
        while not session.over:
            kind, body = await wire.read_message(session.client.reader)
            if kind == "X":
                return
            session.answered.append(session.answer(kind, body))
            self._deliver(session)


class Session:
    """What one client and the server have said to each other."""

    def __init__(self, server: ScriptedServer, client: Client, pid: int) -> None:
        self.client = client
        self.unsent: list[bytes] = []
        self.answered: list[bytes] = []
        self.over = False
        self._server = server
        self._pid = pid
        self._parameters: dict[str, str] = {}
        self._status = "I"
        self._failed = False  # skipping to the next Sync
        self._statements: dict[str, str] = {}
        self._portals: dict[str, tuple[str, bool]] = {}

    def welcome(self, script: Script) -> bytes:
        """Return the end of the start-up: all is well."""
        standby = {"in_hot_standby": _on(self._server.recovering)}
        self._parameters = {**DEFAULT_PARAMETERS, **standby, **script.parameters}
        reports = [wire.parameter_status(*item) for item in self._parameters.items()]
        key = wire.message("K", struct.pack("!II", self._pid, 0))
        return b"".join(
            [wire.AUTHENTICATION_OK, *reports, _storm(script.storm), key, self._ready()]
        )

    def answer(self, kind: str, body: bytes) -> bytes:
        """Return the answer to one message of the client."""
        if kind == "S":
            self._failed = False
            return self._ready()
        if kind == "Q":
            said = self._simple(body[:-1].decode())
            self._failed = False
            return said if self.over else said + self._ready()
        if self._failed:
            return b""
        return self._EXTENDED[kind](self, body)

    def _ready(self) -> bytes:
        return wire.message("Z", self._status.encode())

    # --- the two protocols --------------------------------------------------------------

    def _simple(self, text: str) -> bytes:
        answers = []
        for query in [part for part in text.split(";") if part.strip()] or [""]:
            outcome = self._run(query)
            answers.append(self._said(outcome, described=True, binary=False))
            if isinstance(outcome, Failure):
                break
        return b"".join(answers)

    def _parse(self, body: bytes) -> bytes:
        (name, query), _ = wire.read_texts(body, 2)
        self._statements[name] = query
        return wire.message("1")

    def _bind(self, body: bytes) -> bytes:
        (portal, name), rest = wire.read_texts(body, 2)
        binary = rest.endswith(b"\0\1\0\1")  # one format for the result: binary
        self._portals[portal] = self._statements[name], binary
        return wire.message("2")

    def _describe(self, body: bytes) -> bytes:
        (name,), _ = wire.read_texts(body[1:], 1)
        if body[:1] == b"S":
            query, binary = self._statements[name], False
            parameters = wire.message("t", struct.pack("!H", 0))
        else:
            query, binary = self._portals[name]
            parameters = b""
        value = self._value(_normal(query))
        if value is None or isinstance(value, Failure):
            return parameters + wire.message("n")
        return parameters + wire.row_description(value, binary)

    def _execute(self, body: bytes) -> bytes:
        (portal,), _ = wire.read_texts(body, 1)
        query, binary = self._portals[portal]
        return self._said(self._run(query), described=False, binary=binary)

    def _close(self, body: bytes) -> bytes:
        (name,), _ = wire.read_texts(body[1:], 1)
        (self._statements if body[:1] == b"S" else self._portals).pop(name, None)
        return wire.message("3")

    def _nothing(self, _body: bytes) -> bytes:
        return b""

    _EXTENDED: ClassVar[Mapping[str, Callable[[Session, bytes], bytes]]] = {
        "P": _parse,
        "B": _bind,
        "D": _describe,
        "E": _execute,
        "C": _close,
        "H": _nothing,  # Flush: we keep nothing back
    }

    def _said(self, outcome: Outcome | Failure, *, described: bool, binary: bool) -> bytes:
        if isinstance(outcome, Failure):
            return self._error(outcome)
        tag, value = outcome
        if not tag:
            return wire.message("I")
        if value is None:
            return wire.command_complete(tag)
        description = wire.row_description(value, binary) if described else b""
        return description + wire.data_row(value, binary) + wire.command_complete(tag)

    def _error(self, failure: Failure) -> bytes:
        self._failed = True
        self.over = failure.severity == "FATAL"
        if self._status == "T":
            self._status = "E"
        return _error(failure)

    # --- queries ------------------------------------------------------------------------

    def _run(self, query: str) -> Outcome | Failure:
        self._server.queries.append(query.strip())
        text = _normal(query)
        verb = text.partition(" ")[0]
        if self._status == "E" and verb not in _ENDS:
            return Failure("25P02", "current transaction is aborted", "ERROR")
        value = self._value(text)
        if isinstance(value, Failure):
            return value
        if value is not None:
            return ("SHOW" if verb == "show" else "SELECT 1"), value
        return self._command(verb, text)

    def _command(self, verb: str, text: str) -> Outcome | Failure:
        if verb not in _TAGS:
            return Failure("0A000", f"the scripted server does not know: {text}", "ERROR")
        if verb in ("begin", "start"):
            self._status = "T"
        elif verb in _ENDS:
            self._status = "T" if text.startswith("rollback to") else "I"
        return _TAGS[verb], None

    def _value(self, text: str) -> wire.Value | Failure | None:
        """Return what the row of the query has, None for what is no query of a row."""
        match text.split():
            case _ if text in self._server.answers:
                return self._server.answers[text]
            case ["select", "pg_is_in_recovery()"]:
                return self._server.recovering
            case ["select", "pg_backend_pid()"]:
                return self._pid
            case ["select", number] if number.isdecimal():
                return int(number)
            case ["show", name]:
                names = {known.lower(): known for known in self._parameters}
                return self._parameters[names[name]] if name in names else None
        return None


Outcome = tuple[str, wire.Value | None]

_ENDS = ("commit", "end", "rollback", "abort")

_ITS_NAME = ("begin", "commit", "rollback", "savepoint", "release", "set", "reset", "listen")
_TAGS = {
    **{verb: verb.upper() for verb in (*_ITS_NAME, "unlisten", "deallocate")},
    "": "",
    "start": "START TRANSACTION",
    "end": "COMMIT",
    "abort": "ROLLBACK",
    "discard": "DISCARD ALL",
    "close": "CLOSE CURSOR",
}


async def _patient(client: Client, seconds: float) -> bool:
    """Wait; return whether the client, who has nothing to say meanwhile, has waited too."""
    if not seconds:
        return True
    try:
        async with asyncio.timeout(None if seconds == math.inf else seconds):
            await client.reader.read(1)
    except TimeoutError:
        return True
    return False


async def _refusal(client: Client, script: Script) -> Failure | None:
    """Ask for the password, if there is one; return why the client is refused."""
    if script.password is None:
        return None
    client.write(wire.PASSWORD_PLEASE)
    _, body = await wire.read_message(client.reader)
    return None if body == wire.texts(script.password) else BAD_PASSWORD


def _error(failure: Failure) -> bytes:
    return wire.report("E", failure.severity, failure.code, failure.message)


def _storm(times: int) -> bytes:
    return b"".join(
        wire.parameter_status("application_name", f"storm {serial}") for serial in range(times)
    )


def _normal(query: str) -> str:
    return " ".join(query.lower().split()).rstrip("; ")


def _on(yes: bool) -> str:
    return "on" if yes else "off"
