"""Changes of a network that are made only if they leave its outputs as they are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field

from torch import Tensor, nn

from sq.errors import one_line
from sq.network.products import distance, run
from sq.runtime import out_of_memory

# Relative squared error of the network's outputs that is allowed. It is far above the rounding of
# attention, which is computed in another order (about 1e-12), and far below a wrong layer. All
# other changes repeat the very same operations.
TOLERANCE = 1e-8
COMPARED_IMAGES = 4  # at most


@dataclass(frozen=True)
class Rewritten:
    """The changes made, as ``name (what)``, and those refused: the name and the reason of each."""

    changes: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """A change of the module `name`; `make` applies it, and pushes what reverts it on a stack."""

    name: str
    what: str
    make: Callable[[ExitStack], None]

    def __str__(self) -> str:
        """Return the change as it is listed."""
        return f"{self.name} ({self.what})"


class _ReferenceOutputs:
    """A network's outputs for a few images, which changes must not alter."""

    def __init__(self, root: nn.ModuleDict, x: Tensor):
        """Run the network on the first image, and on the next ones together if it can."""
        self.root = root
        self.passes = [(x[:1], run(root["net"], x[:1]))]
        further = x[1:COMPARED_IMAGES]
        if not len(further):
            return
        try:
            self.passes.append((further, run(root["net"], further)))
        except Exception as error:  # the network takes one image at a time
            if out_of_memory.is_out(error):
                raise
            for image in further.split(1):
                self.passes.append((image, run(root["net"], image)))

    def objection(self) -> str:
        """Return why the network as it is now is not acceptable, "" if it is."""
        errors = []
        try:
            for images, outputs in self.passes:
                errors.append(distance(run(self.root["net"], images), outputs))
        except Exception as problem:  # the network uses an attribute of the module replaced
            if out_of_memory.is_out(problem):
                raise
            return f"the network fails with it, {one_line(problem)[:160]}"
        error = max(errors)
        if error <= TOLERANCE:
            return ""
        return f"changes the outputs, {error:.1e}"


def apply(
    root: nn.ModuleDict,
    x: Tensor,
    changes: list[Change],
    only: Collection[str] | None,
    result: Rewritten,
) -> None:
    """Make those of `changes` that leave the outputs as they are, and add them to `result`.

    Parameters
    ----------
    root : holds the network as "net"
    x : images (B, ...), of which up to `COMPARED_IMAGES` are used
    only : the changes allowed, as `Rewritten.changes` lists them; None allows all
    """
    allowed = [change for change in changes if only is None or str(change) in only]
    if not allowed:
        return
    reference = _ReferenceOutputs(root, x)
    with ExitStack() as undo:
        for change in allowed:
            change.make(undo)
        if not reference.objection():
            undo.pop_all()
            result.changes.extend(map(str, allowed))
            return
    # All together alter the outputs, and are undone here. Each is tried in turn.
    for change in allowed:
        with ExitStack() as undo:
            change.make(undo)
            objection = reference.objection()
            if objection:
                result.refused.append((change.name, f"{change.what}: {objection}"))
            else:
                undo.pop_all()
                result.changes.append(str(change))


def named_modules(root: nn.ModuleDict) -> dict[str, nn.Module]:
    """Return the modules of the network by their names in it, "" for the network itself."""
    modules: dict[str, nn.Module] = {}
    for name, module in root.named_modules():
        if name:
            modules[name.removeprefix("net").removeprefix(".")] = module
    return modules
