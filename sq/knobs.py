"""Types of knobs: `sq/build.py` checks their ranges when a config is turned into code."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Interval

Count = Annotated[int, Ge(1)]
Draws = Annotated[int, Ge(2)]  # of random estimates: one alone has no standard error
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(gt=0, le=1)]
Portion = Annotated[float, Interval(ge=0, le=1)]

# What full precision reaches on an image set, and how near it must come: {"imagenet": {"top1": 76.1, "within": 0.3}}
Expected = dict[str, dict[str, float]] | None
