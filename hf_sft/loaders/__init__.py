"""Dataset formats, one per file; each is the ``data`` block of a recipe."""

from hf_sft.loaders.base import Loader
from hf_sft.loaders.chatterbot import Chatterbot
from hf_sft.loaders.clinc import Clinc
from hf_sft.loaders.coco import Coco
from hf_sft.loaders.conll import Conll
from hf_sft.loaders.hub import Hub
from hf_sft.loaders.image_folder import ImageFolder
from hf_sft.loaders.mask_folder import MaskFolder
from hf_sft.loaders.parallel_text import ParallelText
from hf_sft.loaders.pixel_table import PixelTable
from hf_sft.loaders.squad import Squad
from hf_sft.loaders.table import Table
from hf_sft.loaders.text_files import TextFiles
from hf_sft.loaders.voc import Voc
from hf_sft.loaders.yolo import Yolo

__all__ = [
    "Chatterbot",
    "Clinc",
    "Coco",
    "Conll",
    "Hub",
    "ImageFolder",
    "Loader",
    "MaskFolder",
    "ParallelText",
    "PixelTable",
    "Squad",
    "Table",
    "TextFiles",
    "Voc",
    "Yolo",
]
