"""A part of the sample that ships with ftrain, on which the examples train within a few seconds."""

import shutil

from ftrain.data import sample_folder


def small_sample(folder):
    """A folder with the first 40 training and 10 validation images of each class of the sample."""
    for split, count in (("train", 40), ("val", 10)):
        for each in sorted((sample_folder() / split).iterdir()):
            (folder / split / each.name).mkdir(parents=True)
            for path in sorted(each.iterdir())[:count]:
                shutil.copy(path, folder / split / each.name)
    return folder
