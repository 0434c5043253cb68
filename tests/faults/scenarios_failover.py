"""A primary and its standby change places."""

from __future__ import annotations

from .cluster import Cluster
from .lab import READ_ONLY, ROLE, SETTINGS, Lab, Scenario, Trial, sqlstate
from .proxy import Proxy
from .targets import ALWAYS, full_rate_within, in_flight_only, within

WRITE = "insert into ledger select 1 from pg_sleep(0.005)"


def cluster_of(trial: Trial) -> Cluster:
    """A cluster in place of the lab's server, until the trial is over, with a table to write to."""
    cluster = trial.enter(Cluster(SETTINGS))
    trial.lab = Lab(cluster.primary, trial.lab.password)
    trial.lab.refresh()
    trial.lab.execute("create table ledger (entry integer)")
    trial.lab.execute(f"grant insert on ledger to {ROLE}")
    cluster.wait_until_caught_up()
    return cluster


def failover(trial: Trial) -> None:
    """8 clients write through 4 connections; the primary is stopped and the standby promoted.

    The connection string names both hosts and `target_session_attrs=read-write`. Times count
    from the moment the new primary accepts writes.
    """
    cluster = cluster_of(trial)
    ours = {"user": ROLE, "password": trial.lab.password, "application_name": trial.application}
    trial.open(4, conninfo=cluster.dsn(target_session_attrs="read-write", **ours))
    with trial.load(8, query=WRITE) as crowd:
        trial.rest(0.6)
        with trial.fault():
            cluster.stop_primary("immediate")
        cluster.promote()
        trial.count_from()
        trial.lab.server = cluster.primary
        trial.await_rate(crowd)


def demoted(trial: Trial) -> None:
    """8 clients write through 4 connections to one address; primary and standby swap roles.

    The former primary is up again at the same address, as a standby; 3 s later the address moves
    to the new primary, and the connections made in between live on. Writing on these is an error.
    Times count from the moment the address moves.
    """
    cluster = cluster_of(trial)
    proxy = trial.enter(Proxy.before(cluster.primary))
    trial.open(4, conninfo=trial.conninfo(port=proxy.port))
    with trial.load(8, query=WRITE) as crowd:
        trial.rest(0.6)
        with trial.fault():
            cluster.switch_over()
        trial.rest(3.0, hurried=1.0)
        proxy.retarget("127.0.0.1", cluster.primary.port)
        trial.count_from()
        moved = len(crowd.attempts)
        trial.lab.server = cluster.primary
        trial.await_rate(crowd)
    refused = sum(sqlstate(each.error) == READ_ONLY for each in crowd.attempts[moved:])
    trial.facts["read-only errors after it moved"] = refused


FAILOVER = (
    Scenario(
        "failover",
        "Failover, two hosts in the connection string",
        failover,
        (*ALWAYS, in_flight_only(4), within(0.15), full_rate_within(0.5)),
        goal="full rate",
    ),
    Scenario(
        "demoted",
        "Demoted primary behind one address",
        demoted,
        (*ALWAYS, full_rate_within(3.5)),
        goal="full rate",
        cap=10.0,
    ),
)
