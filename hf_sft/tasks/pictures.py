"""Small pictures that the report and its page hold, and what marks of classes look like."""

import base64
import colorsys
import io
from typing import Any

from PIL import Image

LONGEST = 320  # pixels of a picture's longer side
QUALITY = 80


def picture(image: Image.Image, caption: str, longest: int = LONGEST) -> dict[str, Any]:
    """``{caption, image}`` for `Task.pictures`: a JPEG of about 20 kB as a data URI."""
    small = image.convert("RGB")
    small.thumbnail((longest, longest))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY, optimize=True)
    return {"caption": caption, "image": data_uri(file.getvalue(), "image/jpeg")}


def data_uri(content: bytes, kind: str) -> str:
    """Content of a media type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def colours(count: int) -> list[tuple[int, int, int]]:
    """RGB of classes 0, 1, …: hues a golden section apart, so that neighbours differ."""
    found = []
    for index in range(count):
        hue = (0.58 + index * 0.618034) % 1.0
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, (0.95, 0.75)[index // 8 % 2])
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found
