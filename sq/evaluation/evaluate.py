"""Run networks on the evaluation images, and check that images and classes fit the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sq.core.progress import say
from sq.core.wording import quantity
from sq.dataset import loading
from sq.errors import SqError
from sq.network.forward import forward
from sq.runtime import batching, out_of_memory
from sq.types.images import Batch, Dataset, Images, without
from sq.types.problem import Model

SHOWN_NAMES = 3  # in a message


class Measured(Protocol):
    """The result of a metric for one network: ``metric(model, seen) -> Measured``.

    `seen` yields (raw outputs of the network, the `Batch` it was given), batch after batch, on the
    CPU.
    """

    @property
    def figures(self) -> dict[str, float]:
        """Return what was measured, by name; the first is the one that tables and checks use."""
        ...

    def against(self, full: Measured) -> dict[str, Any]:
        """Compare this, of a quantized network, with full precision on the same images.

        `drop` (full precision less this, of the first figure), `drop_low`, `drop_high` (95 %
        interval, paired over images), and how far the outputs agree: `logit_snr_db`, and what else
        fits the task.
        """
        ...

    def answers(self) -> str | None:
        """Return which images are classified correctly, see `paired_tests.packed`.

        It is None for tasks without correct and wrong predictions.
        """
        ...


Metric = Callable[[Model, Iterable[tuple[Tensor, Batch]]], Measured]


class NetworkEvaluator:
    """Measures networks of one structure on the same images.

    Parameters
    ----------
    model : says how images are prepared, and what shape they then have
    metric : ``metric(model, seen) -> Measured``, where `seen` yields outputs and their batch
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
        self.model = model
        self.metric = metric
        self.images = images
        self.device = device
        self.batch_size = batching.images_per_pass(model.input, batch_size)
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
        """Yield the outputs of `net` for each batch, and the batch."""

        def run(x: Tensor) -> Tensor:
            return forward(net, batching.to_device(x, self.device)).cpu()

        read_ids: list[str] = []
        batches = loading.batches(
            self.images,
            range(len(self.images.ids)),
            self.model.prepare,
            self.batch_size,
            "evaluate",
        )
        for batch in batches:
            check_images(self.model, batch, "evaluation")
            with torch.no_grad():
                outputs = out_of_memory.forward("evaluate", run, batch.x)
            if not torch.isfinite(outputs).all():
                raise SqError(
                    "the network's outputs hold NaN or infinity on the evaluation images: check "
                    "the weights"
                )
            read_ids += batch.ids
            yield outputs, batch
        self.left_out = without(self.images.ids, read_ids)


def check_images(model: Model, batch: Batch, use: str) -> None:
    """Raise an `SqError` if images are not finite or of a shape that the network does not take."""
    shape = tuple(batch.x.shape[1:])
    if shape != model.input:
        raise SqError(f"{use} images are {shape}, the network takes {model.input}")
    finite = torch.isfinite(batch.x).flatten(1).all(1)
    if not finite.all():
        bad = [batch.ids[i] for i in (~finite).nonzero().flatten().tolist()]
        raise SqError(
            f"{quantity(bad, f'{use} image')} with NaN or infinity "
            f"({', '.join(bad[:SHOWN_NAMES])}): repair or remove them"
        )


def check_classes(model: Model, dataset: Dataset, device: torch.device) -> None:
    """Raise an `SqError` unless the network and `dataset` have equally many classes.

    Otherwise labels number other classes than the network's outputs do, and every figure is wrong
    though nothing fails. One image of zeros is run to count the network's classes.
    """
    with torch.no_grad():
        outputs = forward(model.net, batching.to_device(torch.zeros(1, *model.input), device))
    has_objects = isinstance(dataset.test.y, list)
    if has_objects and model.decode is not None:
        _, scores = model.decode(outputs.cpu())
        classes = scores.shape[-1]
        remedy = (
            "list all classes of the network in its order under `names` of the data YAML, "
            "or `categories` of the JSON"
        )
    elif not has_objects and model.decode is None and _are_logits(outputs):
        classes = outputs.shape[1]
        remedy = (
            "give all classes of the network in its order by dataset.classes=FILE (one a line; or "
            "imagenet)"
        )
    else:
        return  # images and network of different tasks, which the metric refuses
    if classes != dataset.classes:
        raise SqError(
            f"dataset {dataset.name} has {quantity(dataset.classes, 'class')}"
            f"{_name_list(dataset.class_names)}, the network tells {classes:,} apart: labels would "
            f"stand for other classes; {remedy}, or choose a network of these classes"
        )
    _compare_names(model.classes, dataset)


def _are_logits(outputs: Any) -> bool:
    return torch.is_tensor(outputs) and outputs.ndim == 2


def _name_list(names: Sequence[str]) -> str:
    """Return the first few names in parentheses, "" without any."""
    if not names:
        return ""
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    return f" ({', '.join(names[:SHOWN_NAMES])}{more})"


def _compare_names(network_names: Sequence[str], dataset: Dataset) -> None:
    """Report the classes that network and `dataset` name differently, if both have names."""
    dataset_names = dataset.class_names
    ours = [name.strip().casefold() for name in network_names]
    theirs = [name.strip().casefold() for name in dataset_names]
    count = min(len(ours), len(theirs))
    different = [number for number in range(count) if ours[number] != theirs[number]]
    if not different:
        return
    examples = []
    for number in different[:SHOWN_NAMES]:
        label, network_name = dataset_names[number], network_names[number]
        examples.append(f"class {number} is {label}, the network's {network_name}")
    more = "; ..." if len(different) > SHOWN_NAMES else ""
    detail = f"{'; '.join(examples)}{more}"
    if {*ours} == {*theirs}:
        say(
            f"dataset {dataset.name} has the network's classes in another order ({detail}): "
            "figures will be wrong; list them in the network's order"
        )
    else:
        say(
            f"dataset {dataset.name} calls {len(different)} of {quantity(count, 'class')} "
            f"otherwise than the network does ({detail}): figures are right only if they are the "
            "same"
        )


def check_disjoint(calibration: list[str], evaluation: list[str]) -> None:
    """Raise an `SqError` if images are used both to calibrate and to evaluate."""
    shared = sorted({*calibration} & {*evaluation})
    if shared:
        raise SqError(
            f"used both to calibrate and to evaluate: {quantity(shared, 'image')} "
            f"({', '.join(shared[:SHOWN_NAMES])}): draw calibration images from the training split"
        )
