"""Where images come from, and batches that are a function of (seed, epoch, index) alone."""

from ftrain.data.augment import Augmentation
from ftrain.data.batches import ImageBatch, Images, Job, load
from ftrain.data.folders import Index, scan
from ftrain.data.sample import sample_folder
from ftrain.data.source import Source
from ftrain.data.sources import Arrays, Examples, by_name, from_arrays, from_dataset

__all__ = [
    "Arrays",
    "Augmentation",
    "Examples",
    "ImageBatch",
    "Images",
    "Index",
    "Job",
    "Source",
    "by_name",
    "from_arrays",
    "from_dataset",
    "load",
    "sample_folder",
    "scan",
]
