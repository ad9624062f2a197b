"""EPTQ: roundings of the whole network learned at once, against what every layer of full precision returns.

    L = [ sum_l mean_n( w_nl mean_positions ||a~_l - a_l||^2 ) + lambda sum_l w_l sum_k (1 - |2 h_lk
    - 1|^beta) ]
        / max_l w_l,    w_l the mean of w_nl over the batch

a~_l is what layer l returns in a pass of the quantized network, so that errors add up as they will.
w_nl, the score of sample-layer attention (SLA), says how much that matters for image n: it comes
from the label-free Hessian.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sq.config.constraints import Count, Positive, Whole
from sq.core.progress import say
from sq.errors import SqError
from sq.hessian import label_free_scores
from sq.learning.reconstruction import Learn
from sq.learning.session import Part
from sq.learning.setup import begin, finish, ready
from sq.learning.student import Hold, Start, Student
from sq.learning.target_cache import Kept
from sq.learning.weighted_mse import squares
from sq.network import geometry, hooks
from sq.network.forward import forward
from sq.runtime import batching
from sq.types.problem import Problem, QuantizedModel


def quantize(  # noqa: PLR0913 (all but one are knobs, each a line of YAML)
    problem: Problem,
    *,
    budget: Literal["cpu", "paper"],
    init: str,
    start: Start,
    hold: Hold,
    attention: Literal["sla", "none"],
    draws: Count,
    memory_gib: Positive,
    checkpoint_every: Count,
    seed: Whole,
    learn: Learn,
) -> QuantizedModel:
    """Learn the quantization of all layers at once.

    Parameters
    ----------
    budget : name of the settings that `learn` was given; for the record
    init, start : the quantizer that gives the codes and grids to start from, by name and as a
    function
    hold : how far on their codes' side roundings start at least, see
    `sq.learning.soft_rounding.Rounding`
    attention : what weighs the errors of images and layers: "sla" their scores, "none" nothing
    draws : of each score
    memory_gib : what full precision returns is kept for all images as far as this, and made anew
    each step beyond
    checkpoint_every : steps between two writes of the state, to be taken up where it was left
    seed : of scores, the order of images and what is drawn for inputs
    learn : see `sq.learning.reconstruction.learn`

    Raises
    ------
    SqError : see `ready`, before anything is solved, and `sq.learning.student`, `start` and `learn`

    Source
    ------
    Gordon et al. 2023, EPTQ: Enhanced Post-Training Quantization via Hessian-guided Network-wise
    Optimization, arXiv 2309.11531, with formulas and settings of its published code. That code
    trains a bias that has no effect; here it has one. Where BatchNorm is not folded, what a
    convolution returns before it is compared.
    """
    own = {
        "budget": budget,
        "init": init,
        "hold": hold,
        "attention": attention,
        "draws": draws,
        "seed": seed,
    }
    ready(problem, {"learn": learn}, [layer.name for layer in problem.model.layers])
    _tell_biases(problem, learn)
    session = begin(problem, start, own, [learn], checkpoint_every)
    x, names = problem.batch.x, [layer.name for layer in problem.model.layers]
    session.start()
    weights = _weights(problem, attention, draws, seed)
    session.count(names, 0)
    size = batching.images_per_pass(x.shape[1:], None)
    wanted = Kept(
        lambda index: returned(problem.model.net, names, x[index]), len(x), size, memory_gib
    )
    with session.student.watched():
        learn(session, Part("network", names, _Error(session.student, names, weights, wanted)))
    scored = {name: float(w.mean()) for name, w in weights.items()} if attention == "sla" else {}
    return finish(session, own | {"streamed": wanted.streamed, "scores": scored})


def _tell_biases(problem: Problem, learn: Learn) -> None:
    """Say so where biases are to be learned and most layers have none."""
    every = problem.model.layers
    own = [layer.name for layer in every if layer.module.bias is not None]
    if getattr(learn, "keywords", {}).get("rates", {}).get("bias") and 2 * len(own) < len(every):
        say(
            f"{len(own)} of {len(every)} layers have a bias to learn: fold=true gives one to those before a BatchNorm"
        )


class _Error:
    """The weighed distance of all layers from full precision, and the weights of the layers in a batch."""

    def __init__(
        self, student: Student, names: list[str], weights: dict[str, Tensor], wanted: Kept
    ):
        self.student, self.weights, self.wanted = student, weights, wanted
        self.modules = {name: student.net.get_submodule(name) for name in names}

    def __call__(
        self, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        given = iter(self.wanted(index))
        own = {name: w[index] for name, w in self.weights.items()}
        means = {name: float(w.mean()) for name, w in own.items()}
        most = max(means.values())
        found: list[Tensor] = []

        def compare(name: str, module: nn.Module, y: Tensor) -> None:
            # Here and now, for what goes on may change y in place.
            found.append(squares(y, next(given), own[name] / most, geometry.channels(module, y)))

        with hooks.returning(self.modules, compare):
            self.student.run(self.student.net, self.student.problem.batch.x[index])
        return torch.stack(found).sum(), {name: mean / most for name, mean in means.items()}


def _weights(problem: Problem, attention: str, draws: int, seed: int) -> dict[str, Tensor]:
    """Return w (N,) of each layer."""
    x = problem.batch.x
    if attention == "none":
        return {layer.name: torch.ones(len(x), device=x.device) for layer in problem.model.layers}
    found = label_free_scores.activation_scores(problem.model, x, draws, seed)
    if bad := [
        name for name, w in found.items() if not (torch.isfinite(w).all() and float(w.sum()) > 0)
    ]:
        raise SqError(
            f"the scores of layer {bad[0]} are not positive numbers: set quantizer.attention=none"
        )
    return {name: w.to(x) for name, w in found.items()}


@torch.no_grad()
def returned(net: nn.Module, names: list[str], x: Tensor) -> list[Tensor]:
    """Return what modules of `net` return for images `x`, in the order of their calls."""
    found: list[Tensor] = []
    # A copy, for what goes on may change it in place.
    with hooks.returning(
        {n: net.get_submodule(n) for n in names}, lambda name, module, y: found.append(y.clone())
    ):
        forward(net, x)
    return found
