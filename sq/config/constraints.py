"""Types of knobs with ranges, which `sq/config/instantiate.py` checks."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval, Len, MinLen

FLOAT = 32  # bits of values that are not quantized


class Distinct:
    """Annotation that refuses lists with a repeated value."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return the schema by which pydantic checks that; pydantic is imported only then."""
        from pydantic_core import PydanticCustomError, core_schema

        def once(values: list[Any]) -> list[Any]:
            if len(set(values)) < len(values):
                raise PydanticCustomError("distinct", "should name each value once")
            return values

        return core_schema.no_info_after_validator_function(once, handler(source))


Count = Annotated[int, Ge(1)]
Bins = Annotated[int, Interval(ge=1, le=2**24)]  # of a histogram: indices are exact in float32
InputWidths = Annotated[list[Count], Distinct()]  # bits of inputs to measure; [] none
Widths = Annotated[list[Count], MinLen(1), Distinct()]  # bits of weights to measure
Draws = Annotated[int, Ge(2)]  # of random estimates: one draw has no standard error
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
Ends = Annotated[list[Positive], Len(2, 2)]  # first and last value of a schedule
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(gt=0, le=1)]
Portion = Annotated[float, Interval(ge=0, le=1)]

# Metrics of full precision by image set, with a tolerance: {"imagenet": {"top1": 76.1, "within":
# 0.3}}. null in place of metrics: they are unknown for these weights on that set.
Expected = dict[str, dict[str, float] | None] | None
