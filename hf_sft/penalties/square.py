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

    def draw_(self, p: Tensor, a: Tensor | None, k: float, weight: Tensor | None = None) -> None:
        """p + s·(a − p) with s = 2kw/(1 + 2kw): `shrink` in one pass over the memory."""
        twice = 2 * k if weight is None else 2 * k * weight
        if a is None:
            p.div_(1 + twice)
        else:
            p.lerp_(a, twice / (1 + twice))
