"""Top-1 and top-5 accuracy: the label is the highest logit, or among the five highest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sq.errors import SqError
from sq.evaluation import agreement, paired_tests
from sq.evaluation.evaluate import Measured
from sq.types.images import Batch
from sq.types.problem import Model


def measure(model: Model, seen: Iterable[tuple[Tensor, Batch]]) -> Measured:
    """Measure one network.

    Parameters
    ----------
    model : not used
    seen : logits (B, K) and their batch, in turn

    Raises
    ------
    SqError : the images have no labels, or a label is no class of the network
    """
    logits, labels = [], []
    for outputs, batch in seen:
        if not torch.is_tensor(batch.y) or outputs.ndim != 2:
            raise SqError(
                "metric=top1 needs one label an image and logits: for objects take metric=coco_map"
            )
        logits.append(outputs)
        labels.append(batch.y)
    result = Classified(torch.cat(logits), torch.cat(labels))
    highest, classes = int(result.labels.max()), result.logits.shape[1]
    if highest >= classes:
        raise SqError(
            f"labels go up to {highest}, the network tells {classes} classes apart: "
            "choose a dataset of its classes"
        )
    return result


@dataclass(frozen=True)
class Classified:
    """Logits (B, K) of one network and the labels (B,) of the images."""

    logits: Tensor
    labels: Tensor

    @cached_property
    def figures(self) -> dict[str, float]:
        """Return `top1` and `top5`, in percent; `top5` only with more than five classes."""
        figures = {"top1": 100 * float(self.right.double().mean())}
        if self.logits.shape[1] > 5:
            highest = self.logits.topk(5).indices  # (B, 5)
            hits = (highest == self.labels[:, None]).any(1)
            figures["top5"] = 100 * float(hits.double().mean())
        return figures

    @property
    def right(self) -> Tensor:
        """Return (B,) whether the highest logit is the label's."""
        return self.logits.argmax(1) == self.labels

    def against(self, full: Measured) -> dict[str, Any]:
        """Return the drop of top-1 in points, its interval and p-value, and how logits agree."""
        assert isinstance(full, Classified)
        low, high = paired_tests.drop_interval(full.right, self.right)
        drop = {
            "drop": full.figures["top1"] - self.figures["top1"],
            "drop_low": 100 * low,
            "drop_high": 100 * high,
            "drop_p": paired_tests.p_value(full.right, self.right),
        }
        return drop | agreement.measure(self.logits, full.logits)

    def answers(self) -> str:
        """Return which predictions are right, packed, to compare methods image by image."""
        return paired_tests.packed(self.right)
