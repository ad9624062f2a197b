"""Top-1 and top-5: the share of images whose label is the highest logit, or among the five highest."""

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
    seen : logits (B, K) and the batch they are of, in turn

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
    found = Classified(torch.cat(logits), torch.cat(labels))
    if int(found.labels.max()) >= found.logits.shape[1]:
        raise SqError(
            f"labels go up to {int(found.labels.max())}, the network tells {found.logits.shape[1]} classes apart: "
            "choose a dataset of its classes"
        )
    return found


@dataclass(frozen=True)
class Classified:
    """Logits (B, K) of one network and the labels (B,) of the images."""

    logits: Tensor
    labels: Tensor

    @cached_property
    def figures(self) -> dict[str, float]:
        """Return `top1` and `top5`, in percent; `top5` only where there are more than five classes."""
        top = self.logits.topk(min(5, self.logits.shape[1])).indices
        hits = top == self.labels[:, None]
        share = {"top1": 100 * float(self.right.double().mean())}
        return share | (
            {"top5": 100 * float(hits.any(1).double().mean())} if self.logits.shape[1] > 5 else {}
        )

    @property
    def right(self) -> Tensor:
        """Return (B,) whether the highest logit is the label's."""
        return self.logits.argmax(1) == self.labels

    def against(self, full: Measured) -> dict[str, Any]:
        """Return drops in percentage points, the interval and p-value of the first, and the agreement of logits."""
        assert isinstance(full, Classified)
        low, high = paired_tests.drop_interval(full.right, self.right)
        drops = {
            "drop": full.figures["top1"] - self.figures["top1"],
            "drop_low": 100 * low,
            "drop_high": 100 * high,
        }
        drops["drop_p"] = paired_tests.p_value(full.right, self.right)
        return drops | agreement.measure(self.logits, full.logits)

    def answers(self) -> str:
        """Return which images were answered rightly: records of other methods are compared image by image."""
        return paired_tests.packed(self.right)
