"""Faults of the server itself: stopped, killed, frozen, full, or with other ideas of a password."""

from __future__ import annotations

from functools import partial

from forebay._embedded import StopMode

from .lab import Scenario, Trial, now, served
from .server_faults import exhausted, kill_backend, suspended, suspended_server
from .targets import (
    ALWAYS,
    HALF_THE_RATE,
    NO_ERRORS,
    NONE_REPLACED,
    ONE_CONNECT_MORE,
    full_rate_within,
    in_flight_only,
    spread_within,
    within,
)


def idle_restart(trial: Trial, *, clients: int) -> None:
    """8 connections are idle for a second, then the server is restarted: 8 queries follow."""
    trial.open(8)
    trial.rest(1.0)
    with trial.fault():
        trial.lab.server.restart("fast")
    trial.count_from()
    trial.join(trial.clients(clients, times=8 / clients))


def restart_under_load(trial: Trial, *, mode: StopMode) -> None:
    """16 clients share 8 connections without pause; the server is stopped and started three times.

    It is down for 0.5, 1 and 2 s. Times count from the moment a plain connection succeeds again;
    the slowest of the three is reported.
    """
    trial.open(8)
    with trial.load(16) as crowd:
        for seconds in trial.rounds(0.5, 1.0, 2.0):
            trial.rest(0.6)
            with trial.fault():
                trial.lab.server.stop(mode)
            trial.rest(seconds)
            trial.count_from(trial.lab.start())
            trial.await_rate(crowd)
            trial.round_is_over()


def some_killed(trial: Trial, *, clients: int) -> None:
    """5 of 8 idle connections are terminated; 0.3 s later 10 queries follow."""
    trial.open(8)
    trial.connect_time()
    trial.rest(0.3)
    with trial.fault():
        trial.terminate(trial.backends()[:5])
    trial.rest(0.3)
    trial.count_from()
    trial.join(trial.clients(clients, times=10 / clients))


def crowded_out(trial: Trial) -> None:
    """The server has too many connections (53300) when 8 clients ask an empty pool of at most 4.

    After 2 s there is room again. Times count from then.
    """
    trial.open(0, room=4)
    with exhausted(trial.lab.server.dsn), trial.fault():
        refused = trial.lab.refusals()
        crowd = trial.clients(8)
        trial.rest(2.0)
        trial.count_from()
    trial.facts["connects refused"] = trial.lab.refusals() - refused
    trial.join(crowd)


def password_changed(trial: Trial) -> None:
    """The password is changed, the sessions are ended; 4 clients ask twice, for 3 s each time.

    Reported: which errors they get, and how soon. Then the old password is restored, and 4 clients
    ask. Times count from then.
    """
    trial.open(4)
    trial.rest(0.2)
    with trial.fault():
        trial.lab.set_password("another")
        trial.terminate(trial.backends())
    told = trial.clients(4, timeout=3.0, failures=2)
    trial.join(told)
    trial.facts["error"] = ", then ".join(lesson(each.error) for each in told.attempts[::4])
    trial.facts["error after, ms"] = round(max(each.wait for each in told.attempts) * 1000)
    trial.lab.set_password(trial.lab.password)
    trial.count_from()
    trial.join(trial.clients(4))


def lesson(error: BaseException | None) -> str:
    """The names of an error and its cause, and whether they speak of the password."""
    chain = [each for each in (error, error and error.__cause__) if each is not None]
    names = " from ".join(type(each).__name__ for each in chain) or "nothing"
    return names + (", names the password" if "password" in str(chain) else "")


def backend_killed(trial: Trial) -> None:
    """`kill -9` of one backend under load: the server ends all sessions and recovers.

    16 clients on 8 connections. Times count from the moment a plain connection succeeds again.
    """
    trial.open(8)
    with trial.load(16) as crowd:
        trial.rest(0.6)
        with trial.fault():
            kill_backend(trial.lab.server, trial.backends()[0])
        trial.count_from()
        trial.await_rate(crowd)


def backend_stopped(trial: Trial) -> None:
    """One of 4 backends is stopped (SIGSTOP) for 3 s while 8 clients share the connections.

    One client has to wait for it; the others share three connections. Times count from the stop.
    """
    trial.open(4)
    with trial.load(8) as crowd:
        trial.rest(0.6)
        with suspended(trial.backends()[0]):
            with trial.fault():
                trial.count_from()
            trial.rest(3.0, hurried=1.0)
            during = sum(end > trial.began for end in served(crowd))
            trial.facts["served during, per s"] = round(during / (now() - trial.began))
        trial.await_rate(crowd, 0.5)


def idle_session_timeout(trial: Trial) -> None:
    """The server ends sessions that are idle for 0.5 s; 4 connections were idle for 1 s."""
    with trial.fault():
        trial.lab.execute("alter role app set idle_session_timeout = 500")
    trial.open(4)
    trial.rest(1.0)
    trial.damaged()
    trial.count_from()
    trial.join(trial.clients(4))


def notify_storm(trial: Trial) -> None:
    """4 idle connections that listen get 2,000 notifications; none may be taken for dead."""
    trial.open(4, listen=True)
    before = trial.backends()
    with trial.fault():
        trial.lab.execute(
            "do $$ begin for i in 1..2000 loop"
            " perform pg_notify('storm', i::text || repeat('x', 100)); end loop; end $$"
        )
    trial.rest(1.2)
    trial.count_from()
    trial.join(trial.clients(8))
    trial.facts["sessions replaced"] = len(set(before) - set(trial.backends()))


def cancelled_in_the_dark(trial: Trial) -> None:
    """The whole server is stopped (SIGSTOP) for 2 s; 60 clients ask and time out.

    Their timeouts are between 10 and 500 ms; of tasks, every other one is also cancelled. When the
    server continues, 8 new clients ask. Times count from then. Errors before that are expected.
    """
    trial.open(4)
    impatient = []
    with suspended_server(trial.lab.server):
        for number in range(60):
            timeout = trial.random.uniform(0.01, 0.5)
            crowd = trial.clients(1, timeout=timeout, failures=1)
            impatient.append(crowd)
            trial.rest(trial.random.uniform(0.0, 0.04))
            if number % 2:
                trial.cancel(crowd)
        trial.rest(0.5)
    with trial.fault():
        trial.count_from()
    trial.join(trial.clients(8), *impatient)
    late = [each.wait - each.timeout for crowd in impatient for each in crowd.attempts]
    trial.facts["timed out late by, ms"] = round(max(0.0, *late) * 1000)


SERVER = (
    Scenario(
        "idle-restart",
        "Idle pool, server restarted, 8 clients",
        partial(idle_restart, clients=8),
        (*ALWAYS, NO_ERRORS, spread_within(0.1, 8)),
    ),
    Scenario(
        "idle-restart-in-turn",
        "Idle pool, server restarted, one client 8 times",
        partial(idle_restart, clients=1),
        (*ALWAYS, NO_ERRORS, spread_within(0.1, 8)),
        check=True,
    ),
    Scenario(
        "restart-fast",
        "Restart under load, `stop -m fast`",
        partial(restart_under_load, mode="fast"),
        (*ALWAYS, in_flight_only(8), within(0.15), full_rate_within(0.5)),
        goal="full rate",
    ),
    Scenario(
        "restart-immediate",
        "Restart under load, `stop -m immediate`",
        partial(restart_under_load, mode="immediate"),
        (*ALWAYS, in_flight_only(8), within(0.15), full_rate_within(0.5)),
        goal="full rate",
    ),
    Scenario(
        "some-killed",
        "5 of 8 idle connections killed, 10 clients",
        partial(some_killed, clients=10),
        (*ALWAYS, NO_ERRORS, ONE_CONNECT_MORE),
    ),
    Scenario(
        "some-killed-in-turn",
        "5 of 8 idle connections killed, one client 10 times",
        partial(some_killed, clients=1),
        (*ALWAYS, NO_ERRORS, ONE_CONNECT_MORE),
        check=True,
    ),
    Scenario(
        "crowded-out",
        "Too many connections (53300)",
        crowded_out,
        (*ALWAYS, NO_ERRORS, within(0.65)),
    ),
    Scenario("password-changed", "Password changed", password_changed, ALWAYS),
    Scenario(
        "backend-killed",
        "`kill -9` of a backend under load",
        backend_killed,
        (*ALWAYS, in_flight_only(8), within(0.15), full_rate_within(0.5)),
        goal="full rate",
    ),
    Scenario(
        "backend-stopped",
        "A backend stopped for 3 s",
        backend_stopped,
        (*ALWAYS, NO_ERRORS, HALF_THE_RATE),
        goal="half the rate",
    ),
    Scenario(
        "idle-session-timeout",
        "`idle_session_timeout`",
        idle_session_timeout,
        (*ALWAYS, NO_ERRORS),
    ),
    Scenario(
        "notify-storm",
        "Notifications to idle connections",
        notify_storm,
        (*ALWAYS, NO_ERRORS, NONE_REPLACED),
        without=frozenset({"asyncpg"}),
    ),
    Scenario(
        "cancelled-in-the-dark",
        "Clients time out while the server is stopped",
        cancelled_in_the_dark,
        (*ALWAYS, within(0.15)),
    ),
)
