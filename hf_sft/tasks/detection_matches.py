"""Which detections of one image are right, by IoU .5: what a person would count as mistakes."""

import numpy as np

IOU = 0.5


def matched(found: np.ndarray, objects: dict[str, list]) -> tuple[int, int, int]:
    """(right, too many, missed) of one image.

    The detections, best score first, each take the free object of their class with the largest
    IoU, if that is at least .5; what lies in a crowd for at least half is no mistake.

    Args:
        found: (n, 6) score, label, x0, y0, x1, y1 in pixels.
        objects: ``bbox`` as x, y, width, height, ``category``, ``iscrowd``.
    """
    boxes = corners(objects["bbox"])
    classes = np.array(objects["category"], dtype=np.int64)
    crowd = np.array(objects["iscrowd"], dtype=bool)
    free = ~crowd
    right = wrong = 0
    for _, label, *box in found[np.argsort(-found[:, 0], kind="stable")]:
        own = classes == int(label)
        shares, inside = overlaps(np.array(box), boxes)
        usable = np.where(own & free, shares, -1.0)
        if usable.size and usable.max() >= IOU:
            free[usable.argmax()] = False
            right += 1
        elif not (own & crowd & (inside >= IOU)).any():
            wrong += 1
    return right, wrong, int(free.sum())


def corners(boxes: list[list[float]]) -> np.ndarray:
    """(n, 4) x, y, width, height -> x0, y0, x1, y1."""
    found = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)


def overlaps(box: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) |a ∩ b| / |a ∪ b| and |a ∩ b| / |a| of a box with each of others, corners in pixels."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    area = max(float(np.prod(box[2:] - box[:2])), 1e-9)
    whole = area + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared
    return shared / whole, shared / area
