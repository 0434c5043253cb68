"""The accident half-way: the server restarts, and every connection is cut."""

from __future__ import annotations

from threading import Thread
from time import perf_counter

import psycopg

from forebay._embedded import EmbeddedPostgres, ExistingServer

_TERMINATE = """
SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 5000))
FROM pg_stat_activity WHERE application_name = %s
"""


class Outage(Thread):
    """Cuts every connection while the clients work on; a thread, so that one can watch.

    The times are `perf_counter()` seconds, None until it has come to that: `began`; `cut`, from
    which on no connection is left that is older; `accepting`, when the server takes new ones. A
    server that is not ours is not restarted (`restarts`): its backends are terminated.
    """

    def __init__(self, server: EmbeddedPostgres | ExistingServer, application_name: str) -> None:
        super().__init__(name="outage", daemon=True)
        self.began: float | None = None
        self.cut: float | None = None
        self.accepting: float | None = None
        self.error: Exception | None = None
        self.restarts = server.restartable
        self._server = server
        self._application_name = application_name

    @property
    def announcement(self) -> str:
        """What is about to happen."""
        if self.restarts:
            return "the server restarts under full load"
        return "all backends are terminated (the server is not ours to restart)"

    def finish(self) -> None:
        """Wait until it is over, if it has begun."""
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        """Cut the connections; an exception is kept in `error`."""
        self.began = perf_counter()
        try:
            if isinstance(self._server, EmbeddedPostgres):
                self._restart(self._server)
            else:
                self._terminate(self._server.dsn)
        except Exception as error:
            self.error = error

    def _restart(self, server: EmbeddedPostgres) -> None:
        server.stop("fast")
        self.cut = perf_counter()
        server.start()
        self.accepting = perf_counter()

    def _terminate(self, dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(_TERMINATE, (self._application_name,))
        self.cut = self.accepting = perf_counter()
