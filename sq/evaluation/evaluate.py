"""A network on the evaluation images, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sq.core.progress import say
from sq.core.wording import quantity
from sq.dataset import loading as reading
from sq.errors import SqError
from sq.network.forward import forward
from sq.runtime import batching, out_of_memory
from sq.types.images import Batch, Dataset, Images, without
from sq.types.problem import Model

SHOWN = 3  # names in a message


class Measured(Protocol):
    """What a metric found of one network on the evaluation images: ``measure(model, seen) -> Measured``.

    `seen` yields (raw outputs of the network, the `Batch` it was given), batch after batch, on the
    CPU.
    """

    @property
    def figures(self) -> dict[str, float]:
        """Return what was measured, by name; the first is the one that tables and gates go by."""
        ...

    def against(self, full: Measured) -> dict[str, Any]:
        """Compare this, of a quantized network, with full precision on the same images.

        `drop` (full precision less this, of the first figure), `drop_low`, `drop_high` (95 %
        interval, paired over images), and how far the outputs agree: `logit_snr_db`, and what else
        fits the task.
        """
        ...

    def answers(self) -> str | None:
        """Return which images were answered rightly (`paired_tests.packed`); None where there is no such thing."""
        ...


Metric = Callable[[Model, Iterable[tuple[Tensor, Batch]]], Measured]


class Evaluation:
    """Measures networks of one structure on the same images.

    Parameters
    ----------
    model : says how images are prepared, and what shape they then have
    metric : ``metric(model, seen) -> Measured``, where `seen` yields outputs and the batch they are
    of
    images : the evaluation split
    batch_size : images in one forward pass; None for what suits their size
    """

    def __init__(
        self,
        model: Model,
        metric: Metric,
        images: Images,
        batch_size: int | None,
        device: torch.device,
    ):
        self.model, self.metric, self.images, self.device = model, metric, images, device
        self.size = batching.images_per_pass(model.input, batch_size)
        self.left_out: list[str] = []  # ids of images that could not be read, in the last pass

    def measure(self, net: nn.Module) -> Measured:
        """Measure `net`.

        Raises
        ------
        SqError : images cannot be read, are not finite or of a wrong shape; the outputs hold NaN or
        infinity
        """
        return self.metric(self.model, self._outputs(net))

    def _outputs(self, net: nn.Module) -> Iterator[tuple[Tensor, Batch]]:
        def run(x: Tensor) -> Tensor:
            return forward(net, batching.to_device(x, self.device)).cpu()

        read: list[str] = []
        every = range(len(self.images.ids))
        for batch in reading.batches(self.images, every, self.model.prepare, self.size, "evaluate"):
            check_images(self.model, batch, "evaluation")
            with torch.no_grad():
                outputs = out_of_memory.forward("evaluate", run, batch.x)
            if not torch.isfinite(outputs).all():
                raise SqError(
                    "the network's outputs hold NaN or infinity on the evaluation images: check the weights"
                )
            read += batch.ids
            yield outputs, batch
        self.left_out = without(self.images.ids, read)


def check_images(model: Model, batch: Batch, use: str) -> None:
    """Raise an `SqError` if images are not finite or of a shape that the network does not take."""
    if tuple(batch.x.shape[1:]) != model.input:
        raise SqError(
            f"{use} images are {tuple(batch.x.shape[1:])}, the network takes {model.input}"
        )
    finite = torch.isfinite(batch.x).flatten(1).all(1)
    if not finite.all():
        bad = [batch.ids[i] for i in (~finite).nonzero().flatten().tolist()]
        raise SqError(
            f"{quantity(bad, f'{use} image')} with NaN or infinity ({', '.join(bad[:3])}): repair or remove them"
        )


def check_classes(model: Model, dataset: Dataset, device: torch.device) -> None:
    """Raise an `SqError` unless the network tells as many classes apart as `dataset` has.

    With fewer classes in the data set, its labels number other classes than the network's outputs
    do, and every figure is wrong though nothing fails. One image of zeros is run for it.
    """
    with torch.no_grad():
        outputs = forward(model.net, batching.to_device(torch.zeros(1, *model.input), device))
    objects = isinstance(dataset.test.y, list)
    if objects and model.decode is not None:
        known = model.decode(outputs.cpu())[1].shape[-1]
        cure = (
            "list all classes of the network in its order under `names` of the data YAML, "
            "or `categories` of the JSON"
        )
    elif not objects and model.decode is None and torch.is_tensor(outputs) and outputs.ndim == 2:
        known = outputs.shape[1]
        cure = "give all classes of the network in its order by dataset.classes=FILE (one a line; or imagenet)"
    else:
        return  # of different kinds, which the metric refuses
    if known != dataset.classes:
        names = ", ".join(dataset.class_names[:SHOWN]) + (
            ", ..." if len(dataset.class_names) > SHOWN else ""
        )
        count = quantity(dataset.classes, "class")
        raise SqError(
            f"dataset {dataset.name} has {count}{names and f' ({names})'}, the network tells {known:,} apart: labels "
            f"would stand for other classes; {cure}, or choose a network of these classes"
        )
    _compare_names(model.classes, dataset)


def _compare_names(network: Sequence[str], dataset: Dataset) -> None:
    """Say so if the network calls its classes otherwise than `dataset` does; where either has no names, nothing."""
    pairs = list(zip(network, dataset.class_names, strict=False))
    ours, theirs = (
        [name.strip().casefold() for name in names] for names in (network, dataset.class_names)
    )
    other = [number for number, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    if not other:
        return
    shown = [f"class {n} is {pairs[n][1]}, the network's {pairs[n][0]}" for n in other[:SHOWN]]
    detail = f"{'; '.join(shown)}{'; ...' if other[SHOWN:] else ''}"
    if {*ours} == {*theirs}:
        say(
            f"dataset {dataset.name} has the network's classes in another order ({detail}): figures will be wrong; "
            "list them in the network's order"
        )
    else:
        say(
            f"dataset {dataset.name} calls {len(other)} of {quantity(pairs, 'class')} otherwise than the network does "
            f"({detail}): figures are right only if they are the same"
        )


def check_disjoint(calibration: list[str], evaluation: list[str]) -> None:
    """Raise an `SqError` if images are used both to calibrate and to evaluate."""
    if shared := sorted({*calibration} & {*evaluation}):
        raise SqError(
            f"used both to calibrate and to evaluate: {quantity(shared, 'image')} ({', '.join(shared[:3])}): "
            "draw calibration images from the training split"
        )
