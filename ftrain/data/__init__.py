"""Where images come from, and batches of them that depend on nothing but the seed, the epoch and the example."""

from ftrain.data.arrays import Arrays, from_arrays
from ftrain.data.as_source import as_source
from ftrain.data.augment import Augmentation
from ftrain.data.batches import ImageBatch, load
from ftrain.data.datasets import Examples, from_dataset
from ftrain.data.device import on_device
from ftrain.data.folders import scan
from ftrain.data.images import Images, Job
from ftrain.data.index import Index
from ftrain.data.pixels import image_pixels
from ftrain.data.sample import sample_folder
from ftrain.data.source import Source
from ftrain.data.table import from_table
from ftrain.data.torchvision_datasets import by_name

__all__ = [
    "Arrays",
    "Augmentation",
    "Examples",
    "ImageBatch",
    "Images",
    "Index",
    "Job",
    "Source",
    "as_source",
    "by_name",
    "from_arrays",
    "from_dataset",
    "from_table",
    "image_pixels",
    "load",
    "on_device",
    "sample_folder",
    "scan",
]
