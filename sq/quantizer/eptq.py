"""EPTQ: learn the roundings of the whole network at once, against the outputs of all layers.

    L = [ sum_l mean_n( w_nl mean_positions ||a~_l - a_l||^2 )
          + lambda sum_l w_l sum_k (1 - |2 h_lk - 1|^beta) ] / max_l w_l

a~_l is the output of layer l in a pass of the quantized network, so errors accumulate as they will
at inference; a_l is its output in full precision. w_nl, the score of sample-layer attention (SLA),
is the importance of the layer for image n, from the label-free Hessian. w_l is the mean of w_nl
over the batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sq.config.constraints import Count, Positive, Whole
from sq.core.progress import say
from sq.errors import SqError
from sq.hessian import label_free_scores
from sq.learning.learning_run import Part
from sq.learning.reconstruction import Learn
from sq.learning.reconstruction_loss import squares
from sq.learning.setup import begin, check_learnable, finish
from sq.learning.student import Hold, Start, Student
from sq.learning.target_cache import TargetCache
from sq.network import geometry, hooks
from sq.network.partial_forward import outputs_of
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
    budget : name of the settings in `learn`; for the record
    init, start : the quantizer that gives the codes and grids to start from, by name and as a
        function
    hold : least distance of the start from 1/2, see `sq.learning.soft_rounding.SoftRounding`
    attention : weights of the errors of images and layers: "sla" their scores, "none" all 1
    draws : random draws for each score
    memory_gib : limit for the cached outputs of all layers for all images; beyond it they are
        computed again in each step
    checkpoint_every : steps between two saved states, from which an interrupted run is resumed
    seed : of scores, the order of images and random draws for inputs
    learn : see `sq.learning.reconstruction.learn`

    Raises
    ------
    SqError : see `check_learnable`, before anything is solved, and `sq.learning.student`, `start`
        and `learn`

    Source
    ------
    Gordon et al. 2023, EPTQ: Enhanced Post-Training Quantization via Hessian-guided Network-wise
    Optimization, arXiv 2309.11531, with formulas and settings of its published code. That code
    trains a bias that has no effect; here it has one. Where BatchNorm is not folded, the outputs of
    the convolution before it are compared.
    """
    settings = {
        "budget": budget,
        "init": init,
        "hold": hold,
        "attention": attention,
        "draws": draws,
        "seed": seed,
    }
    names = [layer.name for layer in problem.model.layers]
    check_learnable(problem, {"learn": learn}, names)
    _warn_of_missing_biases(problem, learn)
    run = begin(problem, start, settings, [learn], checkpoint_every)
    x = problem.batch.x
    # The scores count as set-up, not as steps.
    run.start_clock()
    weights = _weights(problem, attention, draws, seed)
    run.count_time(names, 0)
    batch = batching.images_per_pass(x.shape[1:], None)
    targets = TargetCache(
        lambda index: layer_outputs(problem.model.net, names, x[index]), len(x), batch, memory_gib
    )
    with run.student.quantized_inputs():
        learn(run, Part("network", names, _NetworkLoss(run.student, names, weights, targets)))
    scores: dict[str, float] = {}
    if attention == "sla":
        scores = {name: float(weight.mean()) for name, weight in weights.items()}
    return finish(run, settings | {"streamed": targets.streamed, "scores": scores})


def _warn_of_missing_biases(problem: Problem, learn: Learn) -> None:
    """Log a hint if biases are to be learned but most layers have none."""
    rates = getattr(learn, "keywords", {}).get("rates", {})
    layers = problem.model.layers
    with_bias = sum(layer.module.bias is not None for layer in layers)
    if rates.get("bias") and 2 * with_bias < len(layers):
        say(
            f"{with_bias} of {len(layers)} layers have a bias to learn: fold=true gives one to "
            "those before a BatchNorm"
        )


class _NetworkLoss:
    """The weighted error of the outputs of all layers, for images by number.

    The second result is the weight of each layer's regulariser.
    """

    def __init__(
        self, student: Student, names: list[str], weights: dict[str, Tensor], targets: TargetCache
    ):
        self.student, self.weights, self.targets = student, weights, targets
        self.modules = {name: student.net.get_submodule(name) for name in names}

    def __call__(
        self, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        targets = iter(self.targets(index))
        image_weights = {name: weight[index] for name, weight in self.weights.items()}
        layer_weights = {name: float(weight.mean()) for name, weight in image_weights.items()}
        largest = max(layer_weights.values())  # the loss does not depend on the scale of scores
        errors: list[Tensor] = []

        def compare(name: str, module: nn.Module, y: Tensor) -> None:
            # At once, because what follows may change y in place.
            weight = image_weights[name] / largest
            errors.append(squares(y, next(targets), weight, geometry.channels(module, y)))

        with hooks.returning(self.modules, compare):
            self.student.compute(self.student.net, self.student.problem.batch.x[index])
        relative = {name: weight / largest for name, weight in layer_weights.items()}
        return torch.stack(errors).sum(), relative


def _weights(problem: Problem, attention: str, draws: int, seed: int) -> dict[str, Tensor]:
    """Return the weights (N,) of the images for each layer."""
    x = problem.batch.x
    if attention == "none":
        # Every layer and every image counts alike.
        return {layer.name: torch.ones(len(x), device=x.device) for layer in problem.model.layers}
    scores = label_free_scores.activation_scores(problem.model, x, draws, seed)
    for name, score in scores.items():
        if not (torch.isfinite(score).all() and float(score.sum()) > 0):
            raise SqError(
                f"the scores of layer {name} are not positive numbers: set quantizer.attention=none"
            )
    return {name: score.to(x) for name, score in scores.items()}


@torch.no_grad()
def layer_outputs(net: nn.Module, names: list[str], x: Tensor) -> list[Tensor]:
    """Return the outputs of modules of `net` for images `x`, in the order of their calls."""
    return [y for _, y in outputs_of(net, names, x)]
