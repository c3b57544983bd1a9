"""Errors that a user can do something about. Each message says what was expected, what was found, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = [
    "BusyError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "FtrainError",
    "Interrupted",
    "ProcessError",
    "SettingsError",
    "TrainingError",
    "WorkerError",
]

P = ParamSpec("P")
R = TypeVar("R")


class FtrainError(Exception):
    """Base class of the errors of runs, data and checkpoints. The pure core raises ValueError and TypeError for wrong
    arguments, as torch does.

    >>> issubclass(SettingsError, FtrainError), issubclass(SettingsError, ValueError)
    (True, True)
    """


class SettingsError(FtrainError, ValueError):
    """A setting is unknown, out of range, or conflicts with another setting, the model or this machine."""


class DataError(FtrainError):
    """Images or folders cannot be used for training or evaluation."""


class CheckpointError(FtrainError):
    """A checkpoint is missing, damaged, or belongs to a different network."""


class TrainingError(FtrainError):
    """Training cannot continue."""


class ExportError(FtrainError):
    """The network cannot be exported in this format."""


class BusyError(FtrainError):
    """Another process has locked the run folder."""


class WorkerError(FtrainError):
    """A process that loads images was killed."""


class ProcessError(FtrainError):
    """Another process of the run has ended, or does not answer."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to stop immediately."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def as_usage(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls a function whose ValueError is about a setting, and raises it as SettingsError."""
    try:
        return function(*args, **kwargs)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from error
