"""Views: rows that are drawn anew in every epoch, with as many of their draws as are kept."""

from collections.abc import Mapping
from typing import Any

from hf_sft.caching.row_identity import row_identity
from hf_sft.caching.seam import NoCache
from hf_sft.draws import mixed


class Views:
    """Row r of N in draw v has the number r + v·N; epoch e takes draw e mod ``count``.

    Draw v is what the training without a cache draws in its epoch v, so the first ``count`` epochs
    are the same.

    Args:
        rows: `DrawnRows` of train.
        count: draws of each row.
        seed: of the training.

    Raises:
        NoCache: nothing says how many draws there are to be, or a collator draws for a whole batch.
    """

    def __init__(self, rows: Any, count: int | None, seed: int):
        if not hasattr(rows, "drawn") or rows.number is not None:
            raise NoCache("every epoch draws its rows anew (mixing or masking)")
        if count is None:
            raise NoCache(
                "every epoch draws its rows anew (augmentation); cache.views says how many draws "
                "of each row are kept"
            )
        self.rows, self.count, self.seed = rows, count, seed

    def __len__(self) -> int:
        return self.count * len(self.rows)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        view, row = divmod(number, len(self.rows))
        return self.rows.drawn(row, mixed(self.seed, view, row))

    def number(self, row: int) -> int:
        """Of a row in the draw that the epoch under way takes."""
        return row + self.rows.draws.epoch % self.count * len(self.rows)

    def identity(self) -> str:
        """What the rows, their transform and the draws are."""
        return f"{row_identity(self.rows.rows)} {self.seed} {self.count}"
