"""Short rounds in which every pool has its turn, so that a noisy moment falls on all alike."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial

from .cases import Sample, TaskCase, ThreadCase, floor

FLOOR = "floor"

Samples = dict[str, list[Sample]]
"""The samples of each pool (and of the floor), by name, one a round."""


def run(case: ThreadCase | TaskCase, dsn: str, rounds: int, repeats: int) -> Samples:
    """Measure every peer in `rounds` rounds of `repeats` turns, in alternating order."""
    if isinstance(case, ThreadCase):
        samples = run_threads(case, dsn, rounds + 1, repeats)
    else:
        samples = asyncio.run(run_tasks(case, dsn, rounds + 1, repeats))
    # In the first round the interpreter still specialises its bytecode: nobody's figures.
    return {name: each[1:] for name, each in samples.items()}


def run_threads(case: ThreadCase, dsn: str, rounds: int, repeats: int) -> Samples:
    """All rounds of one case for threads, all pools open side by side."""
    subjects: dict[str, Callable[[int], Sample]] = {}
    with ExitStack() as stack:
        for peer in case.match.peers:
            if peer.threads is not None:
                pool = stack.enter_context(peer.threads(dsn, case.load))
                subjects[peer.name] = partial(case.measure, pool)
        if not case.load:
            subjects[FLOOR] = floor
        samples: Samples = {name: [] for name in subjects}
        for name in turns(list(subjects), rounds):
            with no_collections():
                subjects[name](warm_up(repeats))
                samples[name].append(subjects[name](repeats))
    return samples


async def run_tasks(case: TaskCase, dsn: str, rounds: int, repeats: int) -> Samples:
    """All rounds of one case for asyncio, all pools open side by side in the running loop."""
    subjects: dict[str, Callable[[int], Awaitable[Sample]]] = {}
    async with AsyncExitStack() as stack:
        for peer in case.match.peers:
            if peer.tasks is not None:
                pool = await stack.enter_async_context(peer.tasks(dsn, case.load))
                subjects[peer.name] = partial(case.measure, pool)
        if not case.load:
            subjects[FLOOR] = floor_in_task
        samples: Samples = {name: [] for name in subjects}
        for name in turns(list(subjects), rounds):
            with no_collections():
                await subjects[name](warm_up(repeats))
                samples[name].append(await subjects[name](repeats))
    return samples


async def floor_in_task(repeats: int) -> Sample:
    """The same floor, from inside the loop."""
    return floor(repeats)


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Whose turn it is: all names each round, the order reversed every other round."""
    for number in range(rounds):
        yield from names if number % 2 == 0 else reversed(names)


def warm_up(repeats: int) -> int:
    """Untimed turns before each stretch: caches warm, the idle connection freshly used."""
    return max(1, repeats // 10)


@contextmanager
def no_collections() -> Iterator[None]:
    """Collect garbage now and not again inside the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
