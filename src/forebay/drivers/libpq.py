"""What the drivers share, as both stand on libpq: its options, and its texts of failed connects."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
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


def missing(given: Mapping[str, Any]) -> dict[str, str]:
    """The options to add to those `given`: `DEFAULTS`, but what service and environment set goes.

    Where a service is asked for whose definition is not found, libpq may know more: none.
    """
    known = settings(given)
    if known is None:
        return {}
    return {name: known.get(name, value) for name, value in DEFAULTS.items() if name not in given}


def patience(given: Mapping[str, Any], unbounded: float) -> float:
    """Seconds in which connecting ends by its own time-outs; `unbounded` where one host has none.

    Of a host with several addresses only one is counted, and looking up names not at all.
    """
    known = settings(given)
    known = dict(given) if known is None else {**DEFAULTS, **known}
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

#: What servers, PgBouncer and libpq say in English.  A text in another language is not recognised,
#: nor are those of servers that ask others for a password (LDAP, PAM, RADIUS): they may be down.
_TEXTS = {
    Verdict.CREDENTIALS: (
        r'password authentication failed for user ".*"',
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
        r"server does not support SSL, but SSL was required",
        r'invalid \w+ value: ".*"',
        r'invalid port number: ".*"',
        r'invalid integer value ".*" for connection option ".*"',
        r'invalid connection option ".*"',
        r'missing "=" after ".*" in connection info string',
        r"unterminated quoted string in connection info string",
        r"bad value for connect_timeout: .*",  # psycopg
        r"invalid dsn: .*",  # psycopg2
        r'.* in URI: ".*"',
        r'.* in URI \(expected ":" or "/"\): ".*"',
        r'(?:missing|extra) key/value separator "=" in URI query parameter: ".*"',
        r'invalid URI query parameter: ".*"',
        r'invalid percent-encoded token: ".*"',
        r'forbidden value %00 in percent-encoded value: ".*"',
        r'unexpected spaces found in ".*", use percent-encoded spaces \(%20\) instead',
        r"could not match \d+ (?:port numbers|host names) to \d+ (?:hosts|hostaddr values)",
        r"could not match \d+ host names with \d+ hostaddr values",
        r'definition of service ".*" not found',
        r'service file ".*" not found',
    ),
}

#: Where an attempt is told of: what the text of its failure begins with.
_PREFIX = (
    r"(?:- host: .*, port: .*, hostaddr: .*?: )?"  # psycopg, of several attempts
    r"(?:connection failed: |connection is bad: )?"  # psycopg
    r'(?:connection to server (?:at|on socket) ".*"(?: \(.*\))?(?:, port \d+)? failed: )?'
    r"(?:FATAL:  |ERROR:  )?"
)

#: Lines that say no more of what went wrong.
_MORE = re.compile(
    r"\s|DETAIL:  |HINT:  |$|Multiple connection attempts failed\. All failures were:$"
)


def judge(text: str) -> Verdict:
    """What libpq's text of a failed connect means; it tells of one attempt or of several.

    Each must be recognised: where one may have failed for a passing reason, the next may succeed.
    """
    lines = [line for line in text.splitlines() if not _MORE.match(line)]
    verdicts = {_judge_line(line) for line in lines}
    for verdict in (Verdict.CROWDED, Verdict.TRANSIENT, Verdict.CREDENTIALS, Verdict.REJECTED):
        if verdict in verdicts:
            return verdict
    return Verdict.TRANSIENT


def _judge_line(line: str) -> Verdict:
    match = _texts().fullmatch(line)
    return Verdict[match.lastgroup] if match and match.lastgroup else Verdict.TRANSIENT


@cache
def _texts() -> re.Pattern[str]:
    unknown_host = (
        rf"failed to resolve host '.*': \[Errno {int(socket.EAI_NONAME)}\] .*",
        rf'could not translate host name ".*" to address: {re.escape(_no_such_name())}',
    )
    kinds = {**_TEXTS, Verdict.REJECTED: (*_TEXTS[Verdict.REJECTED], *unknown_host)}
    groups = [f"(?P<{kind.name}>{'|'.join(texts)})" for kind, texts in kinds.items()]
    return re.compile(f"{_PREFIX}(?:{'|'.join(groups)})")


def _no_such_name() -> str:
    """What this system says of a name that certainly does not exist, in its language."""
    try:
        socket.getaddrinfo("no number", None, flags=socket.AI_NUMERICHOST)  # asks no server
    except OSError as error:
        return str(error.strerror)
    return "\0"  # cannot be
