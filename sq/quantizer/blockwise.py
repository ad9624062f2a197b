"""AdaRound, BRECQ and QDrop: quantize one part of a network (a layer or block) after the other.

    min E[ sum_k f_k (z~_k - z_k)^2 ] + lambda sum_k (1 - |2 h_k - 1|^beta)

z~ is the output of a part (a layer or a residual block) whose inputs come from the quantized parts
before it. z is the output of the same part in full precision. The methods differ in their settings:
parts are layers (AdaRound) or blocks; f is 1, or the diagonal of the Fisher information (BRECQ);
QDrop leaves random elements of layer inputs in full precision.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sq.config.constraints import Count, Portion, Positive, Whole
from sq.errors import SqError
from sq.learning.learning_run import LearningRun, Part
from sq.learning.reconstruction import Learn
from sq.learning.reconstruction_loss import squares
from sq.learning.schedules import PrecisionMix
from sq.learning.setup import begin, check_learnable, finish
from sq.learning.student import Hold, Start
from sq.learning.target_cache import TargetCache
from sq.network import blocks, hooks
from sq.network.blocks import ReconstructionUnit
from sq.network.forward import forward
from sq.network.partial_forward import input_and_output_of, input_of
from sq.runtime import batching
from sq.runtime.monte_carlo import seeded, signs
from sq.types.problem import Problem, QuantizedModel

FISHER_IMAGES = 64  # images that the mean of the squared gradients is taken over


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
    budget : name of the settings in `learn` and `then`; for the record
    init, start : the quantizer that gives the codes and grids to start from, by name and as a
        function
    hold : least distance of the start from 1/2, see `sq.learning.soft_rounding.SoftRounding`
    parts : "layers"; or "blocks": residual blocks, and layers outside of them, see
        `sq.network.blocks.find`
    named : names of the blocks, instead of searching for them; None searches, and goes with layers
    loss : "mse"; or "fisher": squared errors weighted by the squared gradients of each image
    drop : share of the elements of a part's input that come from full precision, drawn again in
        each step
    memory_gib : limit for the cached inputs and outputs of a part for all images; beyond it they
        are computed again in each step
    checkpoint_every : steps between two saved states, from which an interrupted run is resumed
    seed : of the order of images, of `drop`, and of `loss`
    learn, then : first and, if given, second stage of learning a part; see
        `sq.learning.reconstruction.learn`

    Raises
    ------
    SqError : before anything is solved: the network returns no tensor; a part is not called once
        with one tensor; `named` is given but parts are layers; see `check_learnable` and
        `sq.network.blocks`. Later: see `sq.learning.student`, `start` and `learn`

    Source
    ------
    Nagel et al. 2020 (AdaRound), arXiv 2004.10568, equation 25; outputs of layers are compared
    before the activation function, which may be no module. Li et al. 2021 (BRECQ), arXiv
    2102.05426, equation 10; the Fisher information is that of outputs with Gaussian noise, E_v[(J^T
    v)^2], scaled to mean 1 over the first images, so that the regulariser has the same weight in
    every part: our reading, which needs no labels and takes any output. It is also our reading that
    `then` follows after each part, and that its result is the input of the next part; the published
    code learns all roundings with inputs in full precision, then all input scales. Wei et al. 2022
    (QDrop), arXiv 2203.05740.
    """
    if parts == "layers" and named is not None:
        raise SqError(
            f"quantizer.named={named}: blocks are named where quantizer.parts=blocks, and here "
            "each layer is learned alone: leave it out, or choose quantizer=brecq"
        )
    settings = {
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
    if parts == "blocks":
        units = blocks.find(model, x[:1], named)
    else:
        units = [ReconstructionUnit(layer.name, layer.module, [layer]) for layer in model.layers]
    # All checks come before the start is solved, which can take long.
    blocks.check(model.net, units, x[:1])
    unit_names = [unit.name for unit in units]
    check_learnable(problem, {"learn": learn, "then": then}, unit_names)
    run = begin(problem, start, settings, [learn, then], checkpoint_every)
    batch = batching.images_per_pass(x.shape[1:], None)
    streamed: list[str] = []
    with run.student.quantized_inputs():
        for unit in units:
            compute = _PartTargets(run, unit, loss == "fisher", drop > 0)
            targets = TargetCache(compute, len(x), batch, memory_gib)
            layers = [layer.name for layer in unit.layers]
            for stage in (learn, then):
                if stage is not None:
                    stage(run, Part(unit.name, layers, _PartLoss(run, unit, drop, targets)))
            # The next part is learned with the final codes of this one.
            run.student.harden(layers)
            if targets.streamed:
                streamed.append(unit.name)
    return finish(run, settings | {"units": unit_names, "streamed": streamed})


class _PartLoss:
    """The error of one part's output against full precision, for images by number."""

    def __init__(
        self, run: LearningRun, unit: ReconstructionUnit, drop: float, targets: TargetCache
    ):
        self.student, self.unit = run.student, unit
        self.module = run.student.net.get_submodule(unit.name)
        self.drop, self.targets = drop, targets
        self.layer_weights = {layer.name: 1.0 for layer in unit.layers}

    def __call__(
        self, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        # (B, ...) each; `rest` as `_PartTargets` has them
        inputs, target, *rest = self.targets(index)
        if self.drop:
            reference = rest.pop(0)  # the input in full precision
            mask = PrecisionMix(self.drop, True, generator).quantized(inputs)
            inputs = torch.lerp(reference, inputs, mask)
        y = self.student.compute(self.module, inputs)
        # Of each element with loss=fisher, else 1 for each image.
        weight = rest[0] if rest else torch.ones(len(y), device=y.device)
        return squares(y, target, weight, self.unit.channels(y)), self.layer_weights


class _PartTargets:
    """Computes what the loss of one part needs, for images by number.

    These are the part's input in the student, its output in full precision and, if they are used,
    its input in full precision and the weights of its squared errors.

    Every part starts from the images again, in both networks, so that the tensors of only one part
    are in memory. For a network of many parts, the cost of these passes is half the square of their
    number.
    """

    def __init__(self, run: LearningRun, unit: ReconstructionUnit, fisher: bool, drops: bool):
        self.student, self.seed, self.unit = run.student, run.seed, unit
        self.fisher, self.drops = fisher, drops
        self.fisher_mean: float | None = None  # of the squared gradients of the first images

    def __call__(self, index: Tensor) -> list[Tensor]:
        problem, name = self.student.problem, self.unit.name
        x = problem.batch.x[index]
        # Parts before this one are fully quantized.
        with torch.no_grad(), self.student.mixing(None):
            reference, target = input_and_output_of(problem.model.net, name, x)
            inputs = input_of(self.student.net, name, x)
        tensors = [inputs, target]
        if self.drops:
            tensors.append(reference)
        if self.fisher:
            tensors.append(self._weights(x, index))
        return tensors

    def _weights(self, x: Tensor, index: Tensor) -> Tensor:
        """Return squared gradients by the part's output, of mean 1 over the first images."""
        if self.fisher_mean is None:
            images = self.student.problem.batch.x
            first = torch.arange(min(FISHER_IMAGES, len(images)))
            self.fisher_mean = float(self._squared_gradients(images[first], first).mean())
        smallest = torch.finfo(x.dtype).tiny  # no division by 0
        return self._squared_gradients(x, index) / max(self.fisher_mean, smallest)

    def _squared_gradients(self, x: Tensor, index: Tensor) -> Tensor:
        net = self.student.problem.model.net
        part_outputs: list[Tensor] = []

        def cut(name: str, module: torch.nn.Module, y: Tensor) -> Tensor:
            part_outputs.append(y.detach().requires_grad_())
            return part_outputs[-1].clone()  # what follows may change it in place

        modules = {self.unit.name: net.get_submodule(self.unit.name)}
        with torch.enable_grad(), hooks.returning(modules, cut):
            outputs = forward(net, x)
            # Random signs by image, whichever images are in the batch.
            random_signs = []
            for output, image in zip(outputs, index, strict=True):
                random_signs.append(signs(output, seeded(self.seed, int(image))))
            product = (outputs * torch.stack(random_signs)).sum()
            return torch.autograd.grad(product, part_outputs)[0].square()
