"""The square: what L2-SP, Fisher-SP and RecAdam share, and how new parameters are decayed."""

from torch import Tensor


class Square:
    """ω(d) = Σ_i w_i·d_i², w = 1 where no weight is given."""

    def density(self, d: Tensor, weight: Tensor | None = None) -> Tensor:
        return (d.square() if weight is None else weight * d.square()).sum()

    def slope(self, d: Tensor, weight: Tensor | None = None) -> tuple[Tensor, float]:
        return d if weight is None else d.mul_(weight), 2.0

    def shrink(self, d: Tensor, k: float, weight: Tensor | None = None) -> Tensor:
        return d.div_(1 + 2 * k if weight is None else 1 + 2 * k * weight)
