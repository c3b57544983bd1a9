"""From settings to a spec and a program."""

import attrs
import numpy as np
import pytest
import tiny_runs
import torch
from signal_runs import make_images

from ftrain.data import from_arrays
from ftrain.errors import SettingsError
from ftrain.run import stages
from ftrain.run.build import build
from ftrain.run.custom import Custom
from ftrain.run.resolve import _about_validation, resolve
from ftrain.run.settings import Settings
from ftrain.run.spec import Interval, RunSpec

MODEL = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    make_images(root)  # 13 to train on, 5 to validate on, in two classes, 16 px
    return root


def test_nothing_in_a_spec_is_none(data):
    spec, images = resolve(Settings(model=MODEL, data=str(data), device="cpu"))
    assert [field.name for field in attrs.fields(RunSpec) if getattr(spec, field.name) is None] == []
    assert (spec.model, spec.weights, spec.classes, spec.train_examples) == (MODEL, "", ("even", "odd"), 13)
    assert (spec.batch_size, spec.eval_batch_size, spec.image_size) == (13, 13, 32)
    assert (spec.lr, spec.weight_decay, spec.clip_norm, spec.ema_decay) == (0.001, 0.05, float("inf"), 0.0)
    assert (spec.save_station, spec.checkpoint_every, spec.warmup_epochs) == (11, Interval(), 1.0)
    assert (spec.precision, spec.memory_format, spec.compile) == ("float32", "channels_last", False)
    assert (spec.pace.steps(1), spec.total_steps) == (1, 10)
    assert spec.notes == (
        "with only 5 validation images, differences in accuracy of less than 36% may be chance; more validation images "
        "would tell more",
        "the training step is not compiled: this run has only 10 steps",
    )
    assert (images.batch_size, images.image_size, images.augmentation) == (13, 32, spec.augmentation)


def test_validation_images_that_tell_little_are_mentioned():
    def about(labels, classes=("a", "b", "c")):
        source = from_arrays(np.zeros((len(labels), 8, 8), np.uint8), labels, classes=classes)
        return _about_validation(source)

    assert about([0, 1, 2] * 34) == []
    assert about([0, 2] * 50) == ["no validation image is of the class b, so nothing will be known about it"]
    assert about([1] * 100) == ["no validation image is of the classes a, c, so nothing will be known about them"]
    assert about([0, 1, 2] * 33) == [
        "with only 99 validation images, differences in accuracy of less than 8% may be chance; more validation images "
        "would tell more"
    ]


def test_uneven_classes_weigh_what_the_settings_say():
    def loss(**settings):
        spec = tiny_runs.spec(label_smoothing=0.0, **settings)  # 7 images of one class, 6 of the other
        return stages._training_loss(spec)(torch.zeros(2, 2), torch.tensor([0, 1])).tolist()

    log2 = 0.6931472
    assert loss() == pytest.approx([log2, log2])
    assert loss(class_weights="balanced") == pytest.approx([13 / 14 * log2, 13 / 12 * log2])
    assert loss(logit_adjustment=1.0) == pytest.approx([0.6190392, 0.7731899])  # -log 7/13, -log 6/13
    assert loss(loss="focal", class_weights="balanced") == pytest.approx([13 / 56 * log2, 13 / 48 * log2])
    assert loss(class_weights="effective")[0] == pytest.approx(loss(class_weights="balanced")[0], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"class_weights": "balanced"},
            "`class_weights` needs training images of every class; there is none of the cl",
        ),
        ({"logit_adjustment": 1.0}, "`logit_adjustment` needs training images of every class; there is none of the cl"),
        (
            {"logit_adjustment": 1.0, "loss": "mean-squared-error"},
            "`logit_adjustment` needs a loss with a softmax, which `loss=mean-squared-error` has not",
        ),
    ],
)
def test_what_cannot_be_done_about_uneven_classes(settings, message):
    source = from_arrays(np.zeros((9, 8, 8), np.uint8), [0, 1] * 4 + [0], classes=("a", "b", "c"))
    with pytest.raises(SettingsError, match=message):
        resolve(Settings(model=MODEL, device="cpu", image_size=32, **settings), sources=(source, source))


def test_class_weights_do_not_change_a_loss_of_ones_own():
    source = from_arrays(np.zeros((8, 8, 8), np.uint8), [0, 1] * 4)
    settings = Settings(model=MODEL, device="cpu", image_size=32, class_weights="balanced")
    with pytest.raises(SettingsError, match="`class_weights` changes a loss of ftrain's; with your own `loss`, build"):
        resolve(settings, Custom(loss=lambda logits, labels: logits.sum(dim=-1)), (source, source))


def test_the_head_cannot_be_trained_alone_for_all_epochs(data):
    with pytest.raises(
        SettingsError, match=r"`head_epochs` must be less than `epochs`; got 3 of 3 epochs\. To train the"
    ):
        resolve(Settings(model=MODEL, data=str(data), device="cpu", epochs=3, head_epochs=3))
    with pytest.raises(SettingsError, match="`warmup_epochs` must be less than `epochs`; got 1 of the 1 after `head_e"):
        resolve(Settings(model=MODEL, data=str(data), device="cpu", epochs=3, head_epochs=2, warmup_epochs=1.0))
    spec, _ = resolve(Settings(model=MODEL, data=str(data), device="cpu", epochs=3, head_epochs=2))
    assert spec.warmup_epochs == 0.1


def test_what_is_recorded_makes_the_same_spec_again(data):
    options = {"ema_decay": 0.9, "clip_norm": 1.0, "checkpoint_every": "10m", "save_station": 2, "batch_size": 4}
    spec, _ = resolve(Settings(model=MODEL, data=str(data), device="cpu", **options))
    again = RunSpec.of(
        Settings(**spec.recorded),
        classes=spec.classes,
        class_counts=spec.class_counts,
        compile_because=spec.compile_because,
        notes=spec.notes,
    )
    assert again == spec
    assert (again.ema_decay, again.clip_norm, again.checkpoint_every) == (0.9, 1.0, Interval(minutes=10))


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(SettingsError, match="`image_size` has no value"):
        RunSpec.of(tiny_runs.settings(image_size=None), classes=("a", "b"), class_counts=(7, 6))


def test_states_of_a_program_share_no_memory():
    with tiny_runs.tiny_network():
        program = build(tiny_runs.spec(ema_decay=0.9))
        one, other = program.init(), program.init()
    leaves, others = (torch.utils._pytree.tree_leaves(state) for state in (one, other))
    assert len(leaves) == len(others)
    assert {leaf.data_ptr() for leaf in leaves}.isdisjoint(leaf.data_ptr() for leaf in others)
    for leaf, copy in zip(leaves, others, strict=True):
        assert torch.equal(leaf, copy)


def test_evaluation_builds_no_optimizer(monkeypatch):
    def fail(*args):
        raise AssertionError("an optimizer was built")

    monkeypatch.setattr(stages, "make_optimizer", fail)
    with tiny_runs.tiny_network():
        program = build(tiny_runs.spec())
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    params, buffers = program.initial_tensors()
    assert program.apply(params, buffers, images, train=False)[0].shape == (2, 2)
    with pytest.raises(AssertionError, match="an optimizer was built"):
        program.init()


def test_the_module_of_a_caller_is_neither_changed_nor_shared():
    module = tiny_runs.network("", classes=2, image_size=8, seed=3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    program = build(tiny_runs.spec(memory_format="channels_last"), Custom(module=module))
    state = program.init()
    program.stage_at(0).train_step(state, (torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0])))
    assert module.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.is_contiguous()
