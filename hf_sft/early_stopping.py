"""The ``early_stopping`` block."""

from pydantic import BaseModel, ConfigDict, Field


class EarlyStopping(BaseModel):
    """Stop after ``patience`` evaluations without a better score; the best checkpoint is kept.

    Without validation rows they are carved from train.

    Keys:
        patience: evaluations without a better score.

    Example: {patience: 3}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    patience: int = Field(ge=1)
