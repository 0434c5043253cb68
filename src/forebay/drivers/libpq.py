"""What the drivers share, as both stand on libpq: its options, and its texts of failed connects."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Container, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .._entry import Verdict

#: Set on every connection where nobody has set them.  Together they find a server that has
#: vanished without a word in 30 seconds: from the 15th second of silence the system asks every 5
#: seconds, three times; and what was sent must be acknowledged within 30 (here milliseconds).
DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

#: Seconds that the added `connect_timeout` never exceeds, however patient an attempt is.
MOST_PATIENT = 120

#: The environment variables of the options that are asked for here.
ENVIRONMENT = {
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "service": "PGSERVICE",
    "servicefile": "PGSERVICEFILE",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}

# Options -----------------------------------------------------------------------------------------


def defaults(factor: int = 1) -> dict[str, str]:
    """`DEFAULTS`, with a `connect_timeout` of `factor` times as many seconds, 120 at most."""
    seconds = min(int(DEFAULTS["connect_timeout"]) * factor, MOST_PATIENT)
    return {**DEFAULTS, "connect_timeout": str(seconds)}


def missing(given: Mapping[str, Any], factor: int = 1) -> dict[str, str]:
    """The options to add to those `given`, but what service and environment set goes.

    They are the `defaults()` of an attempt that is `factor` times as patient.  Where a service is
    asked for whose definition is not found, libpq may know more: none.
    """
    known = settings(given)
    if known is None:
        return {}
    added = defaults(factor).items()
    return {name: known.get(name, value) for name, value in added if name not in given}


def patience(given: Mapping[str, Any], unbounded: float, factor: int = 1) -> float:
    """Seconds in which connecting ends by its own time-outs; `unbounded` where one host has none.

    `factor` multiplies what is added, and nothing that somebody has set.  Of a host with several
    addresses only one is counted, and looking up names not at all.
    """
    known = settings(given)
    known = dict(given) if known is None else {**defaults(factor), **known}
    return allowed(known, unbounded)


def allowed(known: Mapping[str, Any], unbounded: float) -> float:
    """Seconds that these options alone allow for connecting."""
    try:
        seconds = int(float(known.get("connect_timeout") or 0))
    except ValueError:
        seconds = 0
    each = max(2, seconds) if seconds > 0 else unbounded
    hosts = max(len(str(known.get(name, "")).split(",")) for name in ("host", "hostaddr"))
    rounds = 2 if known.get("target_session_attrs") == "prefer-standby" else 1
    return each * hosts * rounds


def wants_writable(given: Mapping[str, Any]) -> bool | None:
    """Whether sessions must be able to write; None where nobody says.

    Several hosts without `target_session_attrs` are meant to be taken as they come.
    """
    known = settings(given) or given
    wanted = known.get("target_session_attrs")
    if wanted is None:
        several = any("," in str(known.get(name, "")) for name in ("host", "hostaddr"))
        return False if several else None
    return wanted in ("read-write", "primary")


def settings(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options `given`, over those of the service, over those of the environment.

    None if a service is asked for whose definition is not found here.
    """
    names = ENVIRONMENT.items()
    environment = {name: os.environ[key] for name, key in names if key in os.environ}
    known = {**environment, **given}
    if "service" not in known:
        return known
    service = _service(known)
    return None if service is None else {**environment, **service, **given}


def _service(known: Mapping[str, Any]) -> dict[str, str] | None:
    """The options of a service, from the user's file or the system's."""
    files = [Path(known.get("servicefile") or "~/.pg_service.conf")]
    if "PGSYSCONFDIR" in os.environ:  # otherwise libpq knows a folder, and does not tell
        files.append(Path(os.environ["PGSYSCONFDIR"], "pg_service.conf"))
    for file in files:
        try:
            text = file.expanduser().read_text(errors="replace")
        except (OSError, RuntimeError):  # not there; or there is no home
            continue
        options = _section(text, str(known["service"]))
        if options is not None:
            return options
    return None


def _section(text: str, name: str) -> dict[str, str] | None:
    """The options under `[name]` in a service file, of which the first of a name counts."""
    options: dict[str, str] | None = None
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            if options is not None:
                break
            if line.startswith(f"[{name}]"):
                options = {}
        elif options is not None and line and not line.startswith("#"):
            if line.startswith("ldap"):  # the rest is in a directory
                return None
            option, _, value = line.partition("=")
            options.setdefault(option, value)
    return options


# Failed connects ---------------------------------------------------------------------------------

#: Of errors with an SQLSTATE: libpq gives none for a failed connect, but a class of the user's may.
STATES = {
    "28000": Verdict.REJECTED,  # no such role; refused by pg_hba.conf
    "28P01": Verdict.CREDENTIALS,
    "3D000": Verdict.REJECTED,  # no such database
    "53300": Verdict.CROWDED,
}

#: What stands for a piece of a connection string, and for words that may have one anywhere.
WITHHELD = "(not shown: it may be part of a password)"
UNREADABLE = "the connection string cannot be read: why is not shown, as it may quote a password"

#: What libpq and the libraries say in English of a connection string that no server will ever be
#: asked by.  Groups are what they quote of it.
_HOPELESS = (
    r'missing "=" after "(.*)" in connection info string',
    r"unterminated quoted string in connection info string",
    r"connection info string size exceeds the maximum allowed \(\d+\)",
    r'invalid connection option "(.*)"',
    r'invalid integer value "(.*)" for connection option ".*"',
    r'invalid port number: "(.*)"',
    r'invalid "?\w+"? (?:value|method): "(.*)"',
    r'invalid value "(.*)" for (?:min|max)imum SSL protocol version',
    r"invalid SSL protocol version range",
    r'"(.*)" is greater than ".*"',
    r"invalid SCRAM (?:client|server) key(?: length: \d+)?",
    r'(?:negative )?require_auth method "(.*)" (?:cannot be mixed with|is specified more than).*',
    r'weak sslmode "(.*)" may not be used with .*',
    r'\w+ value "(.*)" invalid when \w+ support is not compiled in',
    r"\w+ parameter is not supported on this platform",
    r"GSSAPI encryption required but it is not supported over a local socket",
    r"bad value for connect_timeout: (.*)",  # psycopg
    r'[^:]* in URI: "(.*)"',
    r'[^:]* in URI \(expected ":" or "/"\): "(.*)"',
    r'(?:missing|extra) key/value separator "=" in URI query parameter: "(.*)"',
    r'invalid URI query parameter: "(.*)"',
    r'invalid URI propagated to internal parser routine: "(.*)"',
    r'invalid percent-encoded token: "(.*)"',
    r'forbidden value %00 in percent-encoded value: "(.*)"',
    r'unexpected spaces found in "(.*)", use percent-encoded spaces \(%20\) instead',
    r"could not match \d+ (?:port numbers|host names) (?:to|with) \d+ (?:hosts|hostaddr values)",
    r'could not parse network address "(.*)": .*',
    r'Unix-domain socket path "(.*)" is too long \(maximum \d+ bytes\)',
    r'definition of service "(.*)" not found',
    r'service file "(.*)" not found',
    r'(?:syntax error|nested service.* not supported) in service file "(.*)", line \d+',
    r'line \d+ too long in service file "(.*)"',
    r'invalid LDAP URL "(.*)": .*',
    # psycopg has the system look up the port together with the host.
    rf"failed to resolve host ['\"](.*)['\"]: \[Errno {int(socket.EAI_SERVICE)}\] .*",
    r"invalid dsn: (.*)",  # psycopg2, in whatever words
    UNREADABLE,
)

#: What they say of a name that does not resolve, which it may do later.
_UNRESOLVED = (
    r"failed to resolve host ['\"](.*)['\"]: .*",
    r'could not translate host name "(.*)" to address: .*',
)

#: What servers, PgBouncer and libpq say in English.  A text in another language is not recognised,
#: nor are those of servers that ask others for a password (LDAP, PAM, RADIUS): they may be down.
_TEXTS = {
    Verdict.CREDENTIALS: (
        r'password authentication failed(?: for user ".*")?',  # PgBouncer names no user
        r"SASL authentication failed",  # PgBouncer
        r"fe_sendauth: no password supplied",
    ),
    Verdict.CROWDED: (
        r"sorry, too many clients already",
        r"remaining connection slots are reserved for .*",
        r'too many connections for (?:role|database) ".*"',
        r"no more connections allowed \(max_client_conn\)",
    ),
    Verdict.REJECTED: (
        r'database ".*" does not exist',
        r"no such database: .*",
        r'role ".*" does not exist',
        r"no such user: .*",
        r'role ".*" is not permitted to log in',
        r'permission denied for database ".*"',
        r'Peer authentication failed for user ".*"',
        r"no pg_hba\.conf entry for .*",
        r"pg_hba\.conf rejects .*",
        r'unrecognized configuration parameter ".*"',
        r'invalid value for parameter ".*": ".*"',
        r"unsupported startup parameter(?: in options)?: .*",  # PgBouncer
        r"server does not support SSL, but SSL was required",
    ),
}

#: Where an attempt is told of: what the text of its failure begins with.
_ATTEMPT = (
    r"(?:- host: .*, port: .*, hostaddr: .*?: )?"  # psycopg, of several attempts
    r"(?:connection failed: |connection is bad: )?"  # psycopg
    r"(?:invalid dsn: )?"  # psycopg2
    r'(?:connection to server (?:at|on socket) ".*"(?: \(.*\))?(?:, port \d+)? failed: )?'
)
_SAYS = r"(?:FATAL:  |ERROR:  )?"  # the server

#: Lines that say no more of what went wrong.
_MORE = re.compile(
    r"\s|DETAIL:  |HINT:  |$|Multiple connection attempts failed\. All failures were:$"
)

_UNANSWERED = re.compile(f"{_ATTEMPT}(?:connection )?timeout expired")


def judge(text: str) -> Verdict:
    """What libpq's text of a failed connect means; it tells of one attempt or of several.

    Each must be recognised: where one may have failed for a passing reason, the next may succeed.
    """
    verdicts = {_judge_line(line) for line in _lines(text)}
    for verdict in _MILDEST_FIRST:
        if verdict in verdicts:
            return verdict
    return Verdict.TRANSIENT


_MILDEST_FIRST = (
    *(Verdict.CROWDED, Verdict.TRANSIENT, Verdict.CREDENTIALS, Verdict.REJECTED),
    Verdict.HOPELESS,
)


def unanswered(text: str) -> bool:
    """Whether an attempt of which the text tells ended since nobody answered in time."""
    return any(map(_UNANSWERED.fullmatch, _lines(text)))


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not _MORE.match(line)]


def _judge_line(line: str) -> Verdict:
    match = _texts().fullmatch(line)
    return Verdict[match.lastgroup] if match and match.lastgroup else Verdict.TRANSIENT


@cache
def _texts() -> re.Pattern[str]:
    said = "|".join(f"(?P<{kind.name}>{'|'.join(texts)})" for kind, texts in _TEXTS.items())
    hopeless = f"(?P<{Verdict.HOPELESS.name}>{'|'.join(_HOPELESS)})"
    return re.compile(f"{_ATTEMPT}(?:{hopeless}|{_SAYS}(?:{said}))")


# Secrets -----------------------------------------------------------------------------------------

#: Where in a connection string a secret begins: from here on it is not sure where that ends.
_SECRET = re.compile(r":(?!//)[^@]*@|pass|secret|_key", re.IGNORECASE)


def scrub(
    text: str,
    conninfo: object = None,
    harmless: Container[str] = (),
    *,
    readable: bool = True,
    alone: bool = True,
) -> str:
    """The text of a failed connect without what it quotes of a secret.

    Someone who has a blank in a password, or `@` or `/` in that of a URI, has it read as something
    else: as an option, a host, a port; and libpq quotes what it cannot make sense of.  What errors
    of connection strings quote is withheld, unless it stands before all secrets.

    Args:
        text: in the words of libpq, psycopg or psycopg2.
        conninfo: the connection string (str); what is none is not known, and may have any secret.
        harmless: what may be quoted wherever it stands, see `harmless()`.
        readable: whether the library can read the connection string; of one that it cannot read
            a text that is not known is withheld as a whole.
        alone: whether that string is what libpq was given; a class of the user's may have others.
    """
    shown, hidden = _halves(conninfo)
    if alone and not hidden and isinstance(conninfo, str):
        return text
    # What is quoted may have line ends: the whole may be known where its lines are not.
    parts = [text] if _quotation(text) else text.splitlines(keepends=True)
    if not readable and not any(map(_quotation, parts)):
        return UNREADABLE

    def clean(part: str) -> str:
        match = _quotation(part)
        if match is None or not match.groups():
            return part
        piece = match[1]
        if piece in harmless or (piece in shown and piece not in hidden):
            return part
        return part[: match.start(1)] + WITHHELD + part[match.end(1) :]

    return "".join(map(clean, parts))


def harmless(kwargs: Mapping[str, Any]) -> set[str]:
    """What errors may quote of keyword arguments and the environment: names, no secrets."""
    values = {str(value) for name, value in kwargs.items() if not _SECRET.search(name)}
    return {*kwargs, *values, os.environ.get("PGHOST", "")} - {""}


def _halves(conninfo: object) -> tuple[str, str]:
    """A connection string before all its secrets, and from the first on."""
    if not isinstance(conninfo, str):
        return "", ""
    secret = _SECRET.search(conninfo)
    at = len(conninfo) if secret is None else secret.start()
    return conninfo[:at], conninfo[at:]


def _quotation(text: str) -> re.Match[str] | None:
    """A text that is known to quote a connection string, or may; its group is what it quotes."""
    return next(filter(None, (known.fullmatch(text) for known in _quoting())), None)


@cache
def _quoting() -> list[re.Pattern[str]]:
    texts = (*_HOPELESS, *_UNRESOLVED)
    return [re.compile(rf"{_ATTEMPT}{text}\n?", re.DOTALL) for text in texts]


def one_line(text: str) -> str:
    """A text for a log: in one line, and without characters that command a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
