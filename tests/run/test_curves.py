"""The picture of a run's metrics."""

import itertools

import matplotlib
import pytest
import tiny_runs
from PIL import Image

from ftrain.run import curves
from ftrain.run.folder import read


def test_a_line_is_drawn_at_the_middle_of_its_steps():
    lines = [{"step": step} for step in (10, 20, 24, 34)]  # the third line ends an epoch after four steps
    assert curves.middle_steps(lines) == [5.5, 15.5, 22.5, 29.5]
    assert curves.middle_steps([]) == []


def test_a_straight_schedule_is_drawn_straight():
    """Lines average over unequal numbers of steps; each mean lies on the schedule at the middle of its steps."""

    def rate(step):
        return 0.1 - 0.001 * step

    ends = [10, 20, 24, 34, 44, 48]
    lines = [
        {"step": end, "lr": sum(rate(step) for step in range(begin + 1, end + 1)) / (end - begin)}
        for begin, end in itertools.pairwise([0, *ends])
    ]
    for middle, line in zip(curves.middle_steps(lines), lines, strict=True):
        assert line["lr"] == pytest.approx(rate(middle), rel=1e-12)


def test_the_picture_is_written_and_matplotlib_is_left_alone(tmp_path):
    tiny_runs.train(tmp_path / "run")
    before = matplotlib.get_backend()
    curves.draw_curves(read(tmp_path / "run"))
    assert matplotlib.get_backend() == before
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.size == (1320, 396)
