"""Trying the parts of a program that may not fit together, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import ftrain.random
from ftrain import models
from ftrain.errors import SettingsError
from ftrain.run.build import Program
from ftrain.run.custom import described
from ftrain.text import shown


def check(program: Program) -> None:
    """Tries the parts that may not fit together before anything is written.

    Raises:
      SettingsError: if a caller's own network, loss, metric or augmentation fails or returns another shape than
        expected; or if the network cannot be trained on single examples and sees them one at a time, because BatchNorm
        cannot normalise over one example whose feature maps have shrunk to one pixel.
    """
    spec = program.spec
    if not program.custom.is_empty or models.is_own(spec.model):
        _check_custom(program)
    if spec.batch_size != spec.parts:
        return
    example = torch.zeros((1, 3, spec.image_size, spec.image_size), dtype=torch.uint8, device=spec.device)
    key = ftrain.random.key(0, device=spec.device)
    try:
        for stage in program.stages:
            state = stage.enter(program.init())
            stage.apply(state.params, state.buffers, example, train=True, key=key)
    except ValueError as error:
        parts = f" in {spec.parts} parts" if spec.parts > 1 else ""
        raise SettingsError(
            f"`batch_size={spec.batch_size}`{parts} is too small for {shown(spec.model)} at "
            f"`image_size={spec.image_size}`: {error}; use a batch size of at least {2 * spec.parts}"
        ) from error


def _check_custom(program: Program) -> None:
    spec, custom = program.spec, program.custom
    classes, size = len(spec.classes), spec.image_size
    images = torch.zeros((2, 3, size, size), dtype=torch.uint8, device=spec.device)
    labels = torch.zeros(2, dtype=torch.int64, device=spec.device)
    if spec.is_multi_label:
        labels = torch.zeros(2, classes, device=spec.device)
    key = ftrain.random.key(0, device=spec.device)
    params, buffers = program.initial_tensors()
    if custom.augment is not None:
        images = _tried("augment", custom.augment, key, images)
        _check_shape("augment", "images", images, (2, 3, size, size))
    if not params:
        raise SettingsError("`model` has no parameters that require gradients, so there is nothing to train")
    with torch.no_grad():
        outputs, _ = _tried("model", program.apply, params, buffers, images, train=False)
    logits = getattr(outputs, "logits", outputs)
    _check_shape("model", f"logits for {classes} classes", logits, (2, classes))
    logits = logits.detach().float().requires_grad_()
    if custom.loss is not None:
        losses = _tried("loss", custom.loss, logits, labels)
        _check_shape("loss", "one value per example", losses, (2,))
        if not losses.requires_grad:
            raise SettingsError("`loss` does not depend on the logits in a way that can be differentiated")
    for name, metric in custom.metrics.items():
        _check_shape(name, "one value per example", _tried(name, metric, logits.detach(), labels), (2,))


def _tried(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:  # of any kind, from a caller's code
        raise SettingsError(f"`{name}` failed on a batch of two examples: {described(error)}") from error


def _check_shape(name: str, what: str, value: Any, expected: tuple[int, ...]) -> None:
    if not isinstance(value, torch.Tensor) or value.shape != expected:
        found = f"shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise SettingsError(
            f"`{name}` must return {what}, a tensor of shape {list(expected)} for a batch of two examples; got {found}"
        )
