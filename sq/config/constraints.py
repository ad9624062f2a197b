"""Types of knobs: `sq/config/instantiate.py` checks their ranges when a config is turned into code."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval, Len, MinLen

FLOAT = 32  # bits of what is not quantized


class Distinct:
    """Refuses lists that have a value twice."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return how pydantic checks that; it is imported only where something is checked."""
        from pydantic_core import PydanticCustomError, core_schema

        def once(values: list[Any]) -> list[Any]:
            if len(set(values)) < len(values):
                raise PydanticCustomError("distinct", "should name each value once")
            return values

        return core_schema.no_info_after_validator_function(once, handler(source))


Count = Annotated[int, Ge(1)]
Bins = Annotated[int, Interval(ge=1, le=2**24)]  # of a histogram: places are counted in float32
InputWidths = Annotated[list[Count], Distinct()]  # bits of inputs to price; [] prices none
Widths = Annotated[list[Count], MinLen(1), Distinct()]  # bits of weights to price
Draws = Annotated[int, Ge(2)]  # of random estimates: one alone has no standard error
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
Ends = Annotated[list[Positive], Len(2, 2)]  # of what changes: its first and its last value
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(gt=0, le=1)]
Portion = Annotated[float, Interval(ge=0, le=1)]

# What full precision reaches on an image set, and how near it must come: {"imagenet": {"top1":
# 76.1, "within": 0.3}}; null in place of figures: nothing is known of these weights on that set.
Expected = dict[str, dict[str, float] | None] | None
