"""The shipped core and flows: as they are, with lock exits as scheduling points, or mutated."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from forebay import _core, _flows

from .handler import run_through
from .runtime import ModelRuntime, ask


@dataclass(frozen=True)
class Mutation:
    """A seeded bug: one place of one shipped module, changed, or several that go together."""

    module: ModuleType
    old: str
    new: str
    more: tuple[tuple[str, str], ...] = ()

    def apply(self, source: str) -> str:
        """The mutated source; each text must stand there exactly once."""
        for old, new in ((self.old, self.new), *self.more):
            found = source.count(old)
            if found != 1:
                raise ValueError(
                    f"{old!r} stands {found} times in {self.module.__name__}, not once:"
                    " the code has changed, choose the text to mutate anew"
                )
            source = source.replace(old, new)
        return source


@dataclass(frozen=True)
class Code:
    """The classes that a world runs."""

    core: Any
    flows: Any
    source: Any
    preempted: bool  # whether another flow may run after each transition


class _Preempted(ast.NodeTransformer):
    """Puts a scheduling point after each `with ....lock:` of an `async def`.

    In a plain `def` it needs none: what follows there are wake-ups and spawned jobs, whose
    effect the explorer delays anyway.
    """

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_With(self, node: ast.With) -> list[ast.stmt]:
        expression = node.items[0].context_expr
        assert isinstance(expression, ast.Attribute)
        assert expression.attr == "lock"
        call = ast.Call(ast.Name("_leave_lock", ast.Load()), [expression.value], [])
        return [node, ast.Expr(ast.Await(call))]


def instrumented(source: str) -> ast.Module:
    """The source with a scheduling point at each lock exit."""
    tree: ast.Module = _Preempted().visit(ast.parse(source))
    return ast.fix_missing_locations(tree)


@cache
def load(*, preempted: bool = False, mutation: Mutation | None = None) -> Code:
    """The shipped classes; with neither option, the very ones that users import."""
    if mutation is None and not preempted:
        return Code(_core.Core, _flows.Flows, _flows.Source, False)
    core = _altered(_core, mutation, preempted=False)
    flows = _altered(_flows, mutation, preempted=preempted)
    flows.__dict__["Phase"] = core.__dict__["Phase"]
    names = vars(flows)
    # Maintenance is not preempted.
    names["run_sync"] = lambda flow, *args: run_through(flow(*args))
    return Code(vars(core)["Core"], names["Flows"], names["Source"], preempted)


def _altered(module: ModuleType, mutation: Mutation | None, *, preempted: bool) -> ModuleType:
    """The module, executed again from its altered source."""
    source = inspect.getsource(module)
    if mutation is not None and mutation.module is module:
        source = mutation.apply(source)
    tree = instrumented(source) if preempted else ast.parse(source)
    altered = ModuleType(module.__name__)
    altered.__package__ = module.__package__
    altered.__dict__["_leave_lock"] = leave_lock
    exec(compile(tree, str(module.__file__), "exec"), altered.__dict__)
    return altered


async def leave_lock(runtime: ModelRuntime) -> None:
    """Let others run between a transition and what follows it."""
    if not runtime.ended:
        await ask("lock left")
