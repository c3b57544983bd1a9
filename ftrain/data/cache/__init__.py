"""A cache of decoded images: the uint8 pixels of a whole source, in shared memory or in a file that all workers map.

What it stores for an image follows from what training needs (`CacheFormat`). If every epoch shows the same square, the
cache stores that square, with exactly the pixels that decoding the file again would give. If each epoch crops the image
anew, the cache stores the whole image at a reduced size. Crops are scaled from those pixels, and so differ slightly
from crops of the file.
"""

from ftrain.data.cache.build import Caching, build_cache
from ftrain.data.cache.disk import cache_folder, open_cache
from ftrain.data.cache.format import CacheFormat
from ftrain.data.cache.images import ImageCache
from ftrain.data.cache.plan import CachePlan, plan_cache
from ftrain.data.cache.room import available_memory, free_disk, free_shared_memory
from ftrain.data.cache.table import FeatureTable

__all__ = [
    "CacheFormat",
    "CachePlan",
    "Caching",
    "FeatureTable",
    "ImageCache",
    "available_memory",
    "build_cache",
    "cache_folder",
    "free_disk",
    "free_shared_memory",
    "open_cache",
    "plan_cache",
]
