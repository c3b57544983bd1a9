"""Which process hangs, and what a process does when another has failed; with a store in memory, and without waiting."""

import threading

import pytest

from ftrain.parallel.watch import FAILURE, TOLD, Activity, Beat, Watch, hanging

LOADING, STEP = Activity("loading the images of training step 7", 19), Activity("training step 7", 20)


@pytest.mark.parametrize(
    ("activities", "ages", "idle", "expected"),
    [
        ((STEP, STEP), (0, 1), 2, None),
        ((STEP, LOADING), (0, 1), 61, "process 1 has not finished for 60 s: loading the images of training step 7"),
        (
            (STEP, STEP),
            (0, 1),
            61,
            "no process has got further for 60 s, each of them in: training step 7; the network between them may be "
            "interrupted",
        ),
        (
            (STEP, LOADING),
            (0, 61),
            0,
            "process 1 has not answered for 60 s; its last sign of life was during: loading the images of training "
            "step 7",
        ),
        # Nobody gets further because one process was stopped a little less than a minute ago.
        (
            (STEP, STEP),
            (0, 58),
            61,
            "process 1 has not answered for 60 s; its last sign of life was during: training step 7",
        ),
        ((STEP, Activity("training step 7", 20, may_take_long=True)), (0, 1), 3600, None),
    ],
)
def test_which_process_hangs(activities, ages, idle, expected):
    beats = {rank: Beat(9, activity) for rank, activity in enumerate(activities)}
    assert hanging(beats, dict(enumerate(ages)), idle, 60) == expected


class Store:
    """A store in memory."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value

    def get(self, key):
        return self.values[key].encode()

    def check(self, keys):
        return all(key in self.values for key in keys)

    def add(self, key, value):
        self.values[key] = self.values.get(key, 0) + value
        return self.values[key]


def watching(store, **options):
    options = {
        "rank": 1,
        "world": 2,
        "limit": 600.0,
        "failed": lambda text: None,
        "hangs": lambda what: None,
        **options,
    }
    return Watch(store, **options)


def test_a_failure_is_read_once_and_acknowledged():
    store = Store()
    store.set(FAILURE, "why")
    read = threading.Event()

    class Acknowledged(Store):
        values = store.values

        def __init__(self):
            pass

        def add(self, key, value):
            found = super().add(key, value)
            read.set()
            return found

    watch = watching(Acknowledged(), limit=0.01)
    watch.start()
    read.wait()
    watch.stop()
    assert watch.failure == "why"
    assert store.values[TOLD] == 1
    assert store.check(["beat/1"])


def test_a_store_that_has_gone_ends_the_process():
    ended = threading.Event()

    class Gone(Store):
        def check(self, keys):
            raise RuntimeError("Connection reset by peer")

    said = []
    watch = watching(Gone(), limit=0.01, hangs=lambda what: (said.append(what), ended.set()))
    watch.start()
    ended.wait()
    watch.stop()
    assert said == [
        "the process or launcher that connects all others no longer answers (Connection reset by peer)",
    ]
