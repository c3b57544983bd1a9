"""Where images come from: an index of class folders, and batches that are a function of (seed, epoch, index) alone."""

from ftrain.data.index import Index, scan
from ftrain.data.load import ImageBatch, Images, Job, load
from ftrain.data.sample import sample_folder

__all__ = ["ImageBatch", "Images", "Index", "Job", "load", "sample_folder", "scan"]
