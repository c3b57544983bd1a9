"""From a run spec to a program: the network as a pure function, the stages of training, and the steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import attrs
import torch

from ftrain import models
from ftrain.compile import compile_step
from ftrain.losses import Loss
from ftrain.metrics import Metrics
from ftrain.module import Apply, Tensors, functionalize, to_module
from ftrain.parallel import Ranks, one_process
from ftrain.run.custom import Custom
from ftrain.run.network import make_module, placed
from ftrain.run.spec import RunSpec
from ftrain.run.stages import Stage, loss_of, make_stages, measure_of
from ftrain.state import TrainState, init_state, restarted
from ftrain.steps import Batch, Reduce, eval_step, predict_step


@attrs.frozen(eq=False, slots=False)
class Program:
    """What a run computes: pure functions, made when they are first used.

    Attributes:
      stages: the parts of the run in which the same parameters are trained, in their order.
      weights: what was loaded of the pretrained weights; None if there are none.
      reduce: the sum over the logical shards of a batch; None if there is one.
    """

    spec: RunSpec
    custom: Custom
    stages: tuple[Stage, ...]
    weights: models.WeightsReport | None
    reduce: Reduce | None
    _pretrained: bool
    _unused: list[tuple[Tensors, Tensors]]  # the tensors that `build` made; the first state takes them

    @property
    def apply(self) -> Apply:
        """The network in evaluation mode, for images uint8 [B, 3, S, S]; it normalises them."""
        return self.stages[-1].apply

    def stage_at(self, step: int) -> Stage:
        """The stage of the training step that follows `step` others."""
        return [stage for stage in self.stages if stage.first <= step][-1]

    def initial_tensors(self) -> tuple[Tensors, Tensors]:
        """Parameters and buffers at the start of the first stage, on the device of the run. Every call returns new
        tensors."""
        if self._unused:
            return self._unused.pop()
        module, _ = make_module(self.spec, self.custom, pretrained=self._pretrained)
        _, params, buffers = functionalize(module, frozen=self.stages[0].frozen)
        return placed(params, self.spec), placed(buffers, self.spec)

    def init(self) -> TrainState:
        """The state before the first step. No two states share memory."""
        params, buffers = self.initial_tensors()
        optimizer = self.stages[0].optimizer
        return init_state(params, buffers, optimizer, seed=self.spec.seed, ema=self.spec.ema_decay > 0.0)

    def template(self, trained: Collection[str]) -> TrainState:
        """A state of a stage in which these parameters are trained, to load a checkpoint into. If there is no such
        stage, because settings have changed since, the last stage's optimizer is assumed."""
        state, names = self.init(), set(trained)
        for stage in self.stages:
            if names == set(stage.trained):
                return stage.enter(state)
        if names and names <= {*state.params, *self.stages[0].frozen}:
            return restarted(state, self.stages[-1].optimizer, trained)
        return state

    def module(self, params: Tensors, buffers: Tensors) -> torch.nn.Module:
        """The network as a module with these tensors, in evaluation mode. Its inputs are normalised images, float
        [B, 3, S, S]."""
        return to_module(make_module(self.spec, self.custom, pretrained=False)[0], params, buffers)

    @functools.cached_property
    def eval_step(self) -> Callable[[TrainState, Batch], Metrics]:
        """The metrics of a batch in evaluation mode."""
        step = functools.partial(
            eval_step,
            apply=self.apply,
            loss=self.loss,
            metrics=self.custom.metrics,
            measure=measure_of(self.spec),
            precision=self.spec.dtype,
            reduce=self.reduce,
        )
        return compile_step(step) if self.spec.compile else step

    @functools.cached_property
    def predict_step(self) -> Callable[[TrainState, Any], torch.Tensor]:
        """The logits of images, [B, C]. Never compiled, since it is called a few times on batches of any size."""
        return functools.partial(predict_step, apply=self.apply, precision=self.spec.dtype)

    @property
    def loss(self) -> Loss:
        """The loss that evaluation reports: that of training without label smoothing."""
        return self.custom.loss or loss_of(self.spec)


def build(
    spec: RunSpec, custom: Custom | None = None, *, pretrained: bool = True, layout: Ranks | None = None
) -> Program:
    """The program of a run.

    Args:
      custom: the caller's own network, loss, metrics and augmentation.
      pretrained: whether to initialise the network as the spec asks, and to load its pretrained weights; a run that
        resumes does without.
      layout: of a batch over the processes; by default over this process alone.

    Raises:
      SettingsError: if the network cannot be built or frozen as the spec says, or its pretrained weights cannot be
        loaded.
      CheckpointError: if a file of weights is damaged.
    """
    custom = custom or Custom()
    module, weights = make_module(spec, custom, pretrained=pretrained)
    reduce = (layout or one_process(spec.shards)).sum if spec.shards > 1 else None
    stages, (params, buffers) = make_stages(spec, custom, module, reduce)
    return Program(spec, custom, stages, weights, reduce, pretrained, [(placed(params, spec), placed(buffers, spec))])
