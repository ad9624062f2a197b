"""AdaRound, BRECQ and QDrop: one part of a network after the other, each against what full precision returns.

    min E[ sum_k f_k (z~_k - z_k)^2 ] + lambda sum_k (1 - |2 h_k - 1|^beta)

z~ is what a part (a layer, or a residual block) returns, fed what the quantized parts before it
make of an image; z is what full precision returns. The methods differ in their settings: parts are
layers (AdaRound) or blocks; f is 1 or the diagonal of the Fisher information (BRECQ); QDrop leaves
elements of what layers are fed in full precision at random.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

from sq.config.constraints import Count, Portion, Positive, Whole
from sq.errors import SqError
from sq.learning.reconstruction import Learn
from sq.learning.schedules import Mix
from sq.learning.session import Part, Session
from sq.learning.setup import begin, finish, ready
from sq.learning.student import Hold, Start
from sq.learning.target_cache import Kept
from sq.learning.weighted_mse import squares
from sq.network import blocks, hooks
from sq.network.blocks import ReconstructionUnit
from sq.network.forward import forward
from sq.runtime import batching
from sq.runtime.monte_carlo import seeded, signs
from sq.types.problem import Problem, QuantizedModel

FIRST = 64  # images whose squared gradients say what is usual


def quantize(  # noqa: PLR0913 (all but one are knobs, each a line of YAML)
    problem: Problem,
    *,
    budget: Literal["cpu", "paper"],
    init: str,
    start: Start,
    hold: Hold,
    parts: Literal["layers", "blocks"],
    named: list[str] | None,
    loss: Literal["mse", "fisher"],
    drop: Portion,
    memory_gib: Positive,
    checkpoint_every: Count,
    seed: Whole,
    learn: Learn,
    then: Learn | None,
) -> QuantizedModel:
    """Learn the quantization of one part of the network after the other.

    Parameters
    ----------
    budget : name of the settings that `learn` and `then` were given; for the record
    init, start : the quantizer that gives the codes and grids to start from, by name and as a
    function
    hold : how far on their codes' side roundings start at least, see
    `sq.learning.soft_rounding.Rounding`
    parts : "layers", or "blocks": residual blocks, and layers outside of them; see
    `sq.network.blocks.find`
    named : blocks by name, where they are not to be found; None finds them, and goes with layers
    loss : "mse", or "fisher": squared errors weighed by the squared gradients that images leave
    there
    drop : share of the elements of what a part is fed that are full precision's, drawn anew each
    step
    memory_gib : what a part is fed and returns is kept for all images as far as this, and made anew
    each step beyond
    checkpoint_every : steps between two writes of the state, to be taken up where it was left
    seed : of the order of images, of what is dropped, and of `loss`
    learn, then : what is learned of a part first and, if anything, next; see
    `sq.learning.reconstruction.learn`

    Raises
    ------
    SqError : before anything is solved: the network returns no tensor; a part is not called once,
    with one tensor;
        `named` where parts are layers; see `ready` and `sq.network.blocks`; then: see
        `sq.learning.student`, `start` and `learn`

    Source
    ------
    Nagel et al. 2020 (AdaRound), arXiv 2004.10568, equation 25; what a layer returns is compared
    before the activation function, which may be no module. Li et al. 2021 (BRECQ), arXiv
    2102.05426, equation 10; the Fisher information is that of outputs with Gaussian noise, E_v[(J^T
    v)^2], and of mean 1 over the first images, so that the regulariser counts alike in every part:
    our reading, which takes no labels and any output. So is that `then` follows after each part,
    and that the next part is fed what that leaves; the published code learns all roundings with
    inputs in full precision, then all scales of inputs. Wei et al. 2022 (QDrop), arXiv 2203.05740.
    """
    if parts == "layers" and named is not None:
        raise SqError(
            f"quantizer.named={named}: blocks are named where quantizer.parts=blocks, and here each layer is learned "
            "alone: leave it out, or choose quantizer=brecq"
        )
    own = {
        "budget": budget,
        "init": init,
        "hold": hold,
        "parts": parts,
        "named": named,
        "loss": loss,
        "drop": drop,
        "seed": seed,
    }
    model, x = problem.model, problem.batch.x
    each = [ReconstructionUnit(layer.name, layer.module, [layer]) for layer in model.layers]
    chosen = blocks.find(model, x[:1], named) if parts == "blocks" else each
    blocks.check(model.net, chosen, x[:1])
    ready(problem, {"learn": learn, "then": then}, [unit.name for unit in chosen])
    session = begin(problem, start, own, [learn, then], checkpoint_every)
    size = batching.images_per_pass(x.shape[1:], None)
    streamed = []
    with session.student.watched():
        for unit in chosen:
            kept = Kept(_Seen(session, unit, loss == "fisher", drop > 0), len(x), size, memory_gib)
            names = [layer.name for layer in unit.layers]
            for stage in (s for s in (learn, then) if s is not None):
                stage(session, Part(unit.name, names, _Error(session, unit, drop, kept)))
            session.student.harden(names)
            streamed += [unit.name] if kept.streamed else []
    return finish(session, own | {"units": [unit.name for unit in chosen], "streamed": streamed})


class _Error:
    """The distance of what one part returns from full precision's, by the numbers of images."""

    def __init__(self, session: Session, unit: ReconstructionUnit, drop: float, kept: Kept):
        self.session, self.unit, self.module = (
            session,
            unit,
            session.student.net.get_submodule(unit.name),
        )
        self.drop, self.kept = drop, kept
        self.shares = {layer.name: 1.0 for layer in unit.layers}

    def __call__(
        self, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        fed, wanted, *rest = self.kept(index)
        if self.drop:
            fed = torch.lerp(rest.pop(0), fed, Mix(self.drop, True, generator).quantized(fed))
        y = self.session.student.run(self.module, fed)
        weight = rest[0] if rest else torch.ones(len(y), device=y.device)
        return squares(y, wanted, weight, self.unit.channels(y)), self.shares


class _Seen:
    """What the student feeds one part, what full precision gets from it and, where they count, feeds it, and weights.

    Every part starts from the images again, in both networks, so that no more than one part's
    tensors are kept; for a network of many parts, passes up to a part come to half the square of
    their number.
    """

    def __init__(self, session: Session, unit: ReconstructionUnit, fisher: bool, drops: bool):
        self.session, self.unit, self.drops = session, unit, drops
        self.mean: float | None = None  # of the squared gradients, of the first images
        self.fisher = fisher

    def __call__(self, index: Tensor) -> list[Tensor]:
        problem, student = self.session.student.problem, self.session.student
        x, name = problem.batch.x[index], self.unit.name
        with torch.no_grad(), student.mixed(None):  # parts before this one are quantized throughout
            *given, wanted = _through(problem.model.net, name, x)
            fed = _through(student.net, name, x, returns=False)[0]
        return [
            fed,
            wanted,
            *(given if self.drops else []),
            *([self._weights(x, index)] if self.fisher else []),
        ]

    def _weights(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the squared gradients by what the part returns, of mean 1 over the first images."""
        if self.mean is None:
            first = torch.arange(min(FIRST, len(self.session.student.problem.batch.x)))
            self.mean = float(
                self._squared(self.session.student.problem.batch.x[first], first).mean()
            )
        return self._squared(x, index) / max(self.mean, torch.finfo(x.dtype).tiny)

    def _squared(self, x: Tensor, index: Tensor) -> Tensor:
        net, at = self.session.student.problem.model.net, []

        def cut(name: str, module: torch.nn.Module, y: Tensor) -> Tensor:
            at.append(y.detach().requires_grad_())
            return at[-1].clone()  # what goes on may change it in place

        with (
            torch.enable_grad(),
            hooks.returning({self.unit.name: net.get_submodule(self.unit.name)}, cut),
        ):
            outputs = forward(net, x)
            drawn = [
                signs(o, seeded(self.session.seed, int(i)))
                for o, i in zip(outputs, index, strict=True)
            ]
            return torch.autograd.grad((outputs * torch.stack(drawn)).sum(), at)[0].square()


class _Enough(Exception):  # no error: the rest of the network is not needed
    pass


def _through(net: torch.nn.Module, name: str, x: Tensor, returns: bool = True) -> list[Tensor]:
    """Return what a module of `net` is fed for images `x` and, if it `returns`, what it returns."""
    found: list[Tensor] = []

    def fed(name: str, module: torch.nn.Module, x: Tensor) -> None:
        found.append(x.clone())  # a copy, for the module may change it in place
        if not returns:
            raise _Enough

    def returned(name: str, module: torch.nn.Module, y: Tensor) -> None:
        found.append(y.clone())
        raise _Enough

    own = {name: net.get_submodule(name)}
    with hooks.feeding(own, fed, first=True), hooks.returning(own, returned), suppress(_Enough):
        forward(net, x)
    return found
