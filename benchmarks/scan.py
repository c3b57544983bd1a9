"""The time and memory of indexing many files: scanning, sorting and permuting.

    python benchmarks/scan.py [FILES]

First makes FILES (default: 1,000,000) empty files in 1,000 class folders of a temporary folder, which takes longest.
Target with 1,000,000: less than 10 s and 500 MB.
"""

import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import ftrain
from ftrain.data import scan
from ftrain.data.order import epoch_order

count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
with tempfile.TemporaryDirectory() as folder:
    for name in range(1000):
        os.mkdir(f"{folder}/class{name:03}")
    for number in range(count):
        os.close(os.open(f"{folder}/class{number % 1000:03}/image{number:07}.jpg", os.O_CREAT))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    index = scan(Path(folder))
    scanned = time.perf_counter()
    order = epoch_order(0, 0, len(index))
    permuted = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(order) == len(index) == count
print(f"ftrain {ftrain.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, {count} files")
print(f"scan and sort  {scanned - start:6.2f} s")
print(f"permute        {permuted - scanned:6.2f} s")
print(f"memory         {(after - before) / 1024:6.0f} MB more than before, {after / 1024:.0f} MB in all")
