"""Faults between the pool and a server that is well: connections cut, swallowed and ended."""

from __future__ import annotations

from functools import partial

from .lab import Scenario, Trial
from .proxy import Proxy
from .targets import ALWAYS, NO_ERRORS, full_rate_within, in_flight_only, spread_within, within
from .tls import Authority, TlsProxy

ROW = "select pg_sleep(0.005), repeat('x', 2000)"


def proxied(trial: Trial) -> Proxy:
    """A proxy before the lab's server, until the trial is over."""
    return trial.enter(Proxy.before(trial.lab.server))


def reset_into_hole(trial: Trial, *, room: int) -> None:
    """4 connections are returned with `reset=` set while all they send is swallowed.

    New connections reach the server by a second address. 8 clients ask 0.1 s after the return, each
    willing to wait 5 s. Times count from then.
    """
    old, new = proxied(trial), proxied(trial)
    conninfo = trial.conninfo(host="127.0.0.1,127.0.0.1", port=f"{old.port},{new.port}")
    trial.open(4, room=room, conninfo=conninfo, reset=True)
    trial.rest(0.2)  # until these are idle again, and nothing is being opened
    with trial.holding(4), trial.fault():
        old.refuse()
        old.blackhole()
    trial.rest(0.1)
    trial.count_from()
    trial.join(trial.clients(8, timeout=5.0))
    old.heal()


def connects_hang(trial: Trial) -> None:
    """The first 3 connects of an empty pool are accepted, never answered; later ones go elsewhere.

    5 more clients ask 0.2 s later, each willing to wait 5 s. Times count from then.
    """
    old, new = proxied(trial), proxied(trial)
    conninfo = trial.conninfo(host="127.0.0.1,127.0.0.1", port=f"{old.port},{new.port}")
    trial.open(0, room=8, conninfo=conninfo)
    old.pause()
    with trial.fault():
        first = trial.clients(3, timeout=5.0)
        trial.rest(0.2)
        old.refuse()
    trial.count_from()
    trial.join(first, trial.clients(5, timeout=5.0))
    old.heal()


def hole_healed(trial: Trial) -> None:
    """Everything is swallowed for 6 s; 4 clients ask the idle pool at once, 4 more after 1 s.

    The pool has 4 idle connections and may have 8. A silent network cannot be distinguished from a
    slow one that soon: these 8 have to wait. Times count from the moment the network is back.
    """
    proxy = proxied(trial)
    trial.open(4, room=4, conninfo=trial.conninfo(port=proxy.port))
    with trial.fault():
        proxy.blackhole()
    first = trial.clients(4)
    trial.rest(1.0)
    crowds = first, trial.clients(4)
    trial.rest(5.0, hurried=0.5)
    proxy.heal()
    trial.count_from()
    trial.join(*crowds, trial.clients(4))


def all_ended(trial: Trial, *, how: str) -> None:
    """8 idle connections are ended by the network; 0.1 s later 8 clients run a query each."""
    proxy = proxied(trial)
    trial.open(8, conninfo=trial.conninfo(port=proxy.port))
    trial.rest(0.3)
    with trial.fault():
        getattr(proxy, how)()
    trial.rest(0.1)
    trial.count_from()
    trial.join(trial.clients(8))


def cut_mid_message(trial: Trial) -> None:
    """16 clients on 8 connections; each connection is cut (RST) in the middle of an answer."""
    proxy = proxied(trial)
    trial.open(8, conninfo=trial.conninfo(port=proxy.port))
    with trial.load(16, query=ROW) as crowd:
        trial.rest(0.6)
        with trial.fault():
            proxy.cut(700)
            trial.rest(0.05)
        trial.count_from(trial.began)
        trial.await_rate(crowd)


def terminated_under_tls(trial: Trial) -> None:
    """4 idle connections under TLS are terminated; 0.1 s later 8 clients run a query each."""
    authority = trial.enter(Authority())
    proxy = trial.enter(TlsProxy.secure(trial.lab.server, authority))
    # That the certificate is verified is not what is tried here, and not every library takes a
    # root file from a connection string.
    trial.open(4, conninfo=trial.conninfo(port=proxy.port, sslmode="require"))
    trial.rest(0.3)
    with trial.fault():
        trial.terminate(trial.backends())
    trial.rest(0.1)
    trial.count_from()
    trial.join(trial.clients(8))


NETWORK = (
    Scenario(
        "reset-into-hole",
        "Black hole with `reset=` set, pool at `max_size`",
        partial(reset_into_hole, room=0),
        (*ALWAYS, NO_ERRORS, within(5.0)),
        cap=8.0,
    ),
    Scenario(
        "reset-into-hole-room",
        "Black hole with `reset=` set, room to grow",
        partial(reset_into_hole, room=4),
        (*ALWAYS, NO_ERRORS, within(5.0)),
        cap=8.0,
    ),
    Scenario(
        "connects-hang",
        "Connects that hang, while others would succeed",
        connects_hang,
        (*ALWAYS, NO_ERRORS, within(5.0)),
        cap=15.0,
    ),
    Scenario("hole-healed", "Black hole of 6 s, healed", hole_healed, (*ALWAYS, NO_ERRORS)),
    Scenario(
        "reset-by-network",
        "Idle connections reset (RST)",
        partial(all_ended, how="reset"),
        (*ALWAYS, NO_ERRORS, spread_within(0.1, 8)),
    ),
    Scenario(
        "half-closed",
        "Idle connections half-closed (FIN)",
        partial(all_ended, how="half_close"),
        (*ALWAYS, NO_ERRORS, spread_within(0.1, 8)),
    ),
    Scenario(
        "cut-mid-message",
        "Connections cut in the middle of an answer",
        cut_mid_message,
        (*ALWAYS, in_flight_only(8), full_rate_within(0.5)),
        goal="full rate",
    ),
    Scenario(
        "tls",
        "Idle connections under TLS terminated",
        terminated_under_tls,
        (*ALWAYS, NO_ERRORS, spread_within(0.1, 8)),
    ),
)
