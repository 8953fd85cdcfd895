"""The ``nonfinite`` block."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class NonFinite(BaseModel):
    """What to do where a loss or a gradient is not a number, or infinite.

    stop: training ends with the step and its rows, and the last checkpoint stays. skip: the whole
    step is left out, on all processes, and the report names its rows; weights, moments and step
    rules stay as they were, the learning rate goes on.

    Keys:
        then: stop or skip.
        in_a_row: with skip, how many steps after one another may be left out.

    Example: {then: skip}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    then: Literal["stop", "skip"] = "stop"
    in_a_row: int = Field(5, ge=1)
