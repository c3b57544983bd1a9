"""Settings of all tests."""

import os

if os.environ.get("FTRAIN_CHECK_SHAPES"):  # set by test_typed.py
    import jaxtyping

    pure_core = ("random", "schedules", "losses", "metrics", "mix", "module", "optim", "state", "statistics", "steps")
    jaxtyping.install_import_hook([f"ftrain.{name}" for name in pure_core], "beartype.beartype")

# Sums are added up in another order with another number of threads; the processes that tests start inherit this one.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def without_curves(monkeypatch):
    """Runs do not draw curves.png after every epoch, which takes longer than their training."""
    monkeypatch.setattr("ftrain.run.api.draw_curves", lambda run: None)
