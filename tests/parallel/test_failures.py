import pytest

from ftrain.errors import BusyError, DataError, Interrupted, ProcessError, SettingsError, TrainingError, WorkerError
from ftrain.parallel.failures import dump, is_lost_connection, load

ERRORS = [
    SettingsError("`batch_size` must be an integer >= 1; got 0"),
    DataError("cannot read the image a.png: the file is empty"),
    TrainingError("memory ran out"),
    WorkerError("a worker was killed"),
    BusyError("the folder is in use"),
    ProcessError("process 1 has not answered"),
    KeyboardInterrupt("stopped before the run started"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_in_another_process(error):
    rank, found = load(dump(error, 3))
    assert (rank, type(found), str(found)) == (3, type(error), str(error))


def test_what_an_exit_code_needs_is_kept():
    assert load(dump(Interrupted(15), 1))[1].signal == 15
    full = load(dump(OSError(28, "No space left on device", b"a/state.safetensors"), 0))[1]
    assert (full.errno, full.strerror, full.filename) == (28, "No space left on device", "a/state.safetensors")
    assert isinstance(load(dump(PermissionError(13, "Permission denied", "a"), 0))[1], PermissionError)
    assert str(load(dump(OSError("a pipe"), 0))[1]) == "a pipe"


def test_another_error_names_its_class_and_its_process():
    rank, found = load(dump(ZeroDivisionError("division by zero"), 2))
    assert (rank, type(found), str(found)) == (2, RuntimeError, "process 2: ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:674"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1"), True),
        (ConnectionResetError("reset"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (TrainingError("the connection of a layer is wrong"), False),
        (MemoryError(), False),
        (ValueError("connection"), False),
    ],
)
def test_which_errors_may_only_say_that_another_process_has_ended(error, lost):
    assert is_lost_connection(error) == lost
