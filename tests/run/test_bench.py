"""What `ftrain bench` measures and concludes."""

import os

import attrs
import pytest
import tiny_runs
import torch
from ftrain_cli.main import app
from signal_runs import make_images
from typer.testing import CliRunner

from ftrain.errors import DataError, TrainingError
from ftrain.run import bench, candidate
from ftrain.run.bench import Measuring, Report
from ftrain.run.candidate import Candidate, Memory, Sample
from ftrain.run.custom import Custom

MEMORY = Memory(fixed=1_000, per_image=100, free=10_000)


def report(**changes):
    spec = tiny_runs.spec(batch_size=4)
    values = {"spec": spec, "step": 100.0, "alternatives": {}, "decoding": 900.0, "cached": None, "both": 95.0}
    return Report(**{**values, "compiling": None, "memory": MEMORY, "peak": None, **changes})


def test_the_batch_that_fits():
    # 0.8 x 10,000 - 1,000 bytes hold 70 images, so 64.
    assert MEMORY.largest_batch == 64
    assert MEMORY.of(64) == 7_400
    assert attrs.evolve(MEMORY, free=1_300).largest_batch == 0
    assert attrs.evolve(MEMORY, free=0).largest_batch == 0


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, "the step"),
        ({"both": 85.0}, "both"),
        ({"decoding": 80.0, "both": 70.0}, "the input pipeline"),
        ({"decoding": 80.0, "cached": 5_000.0}, "the step"),
    ],
)
def test_what_limits(changes, limit):
    assert report(**changes).limit == limit


def test_what_to_change():
    assert report().advice == []
    found = {"a=1": 1.04, "b=2": 1.2, "c=3": 1.5, "d=4": "no such kernel"}
    assert report(alternatives=found).advice == [
        "`c=3` makes the step 1.50 x as fast",
        "`b=2` makes the step 1.20 x as fast",
    ]
    slow = report(decoding=80.0, both=70.0).advice
    assert slow == [
        "`cache=ram` or `cache=disk` may help, because it keeps decoded images",
        f"`workers={os.cpu_count()}`, one per core, may help",
    ]
    most = attrs.evolve(report().spec, workers=os.cpu_count(), cache="ram")
    assert report(spec=most, cached=80.0, both=70.0).advice == []
    on_gpu = attrs.evolve(report().spec, device="cuda")
    assert report(spec=on_gpu).advice == ["`batch_size=64` may fit, and larger batches use a GPU better"]


def test_the_alternatives_to_a_step():
    spec = tiny_runs.spec()
    assert list(bench.alternatives(spec)) == ["memory_format=channels_last", "precision=bfloat16"]
    on_gpu = attrs.evolve(spec, device="cuda:1", compile=True, deterministic=True)
    found = bench.alternatives(on_gpu)
    assert list(found) == ["compile=False", "deterministic=False"]
    assert found["compile=False"] == attrs.evolve(on_gpu, compile=False)


def test_a_sample_is_spread_over_the_source():
    source = tiny_runs.images().train  # 13 images, labels 0 1 0 1 ...
    sample = Sample.of(source, 4)
    assert sample.positions.tolist() == [0, 4, 8, 12]
    assert sample.labels.tolist() == [0, 0, 0, 0]
    assert (len(sample), sample.image_name(1), sample.classes) == (4, "array[4]", ("even", "odd"))
    assert len(Sample.of(source, 50)) == 13
    assert len({source.fingerprint, sample.fingerprint, Sample.of(source, 5).fingerprint}) == 3


def test_the_memory_of_a_step_is_what_autograd_keeps():
    with tiny_runs.tiny_network():
        found = candidate.memory_of_step(tiny_runs.spec(), Custom())
    weights, running = 4 * 3 * 3 * 3 + 4 + 4 + 4 + 2 * 36 + 2, 4 + 4
    # Weights, gradients and two moments in float32; the running statistics; three int64 counters and two of the key's.
    assert found.fixed == 4 * (4 * weights + running) + 8 * 4
    image, map_ = 3 * 8 * 8, 4 * 3 * 3
    # In float32 the image, the convolution's output, ReLU's, dropout's factors or mask, what the last layer sees ...
    assert 4 * (image + 3 * map_) <= found.per_image <= 4 * (image + 6 * map_) + 100


@pytest.mark.parametrize("changes", [{}, {"cache": "ram"}])
def test_a_report(changes):
    with tiny_runs.tiny_network():
        events = list(bench.bench(tiny_runs.spec(**changes), tiny_runs.images(), seconds=0.02))
    found = events[-1]
    titles = [event.what for event in events if isinstance(event, Measuring)]
    with_cache = ["the input pipeline with a cache"] if changes else []
    assert titles == [
        "memory",
        "the step",
        "the step with `memory_format=channels_last`",
        "the step with `precision=bfloat16`",
        "the input pipeline",
        *with_cache,
        "both together",
    ]
    assert min(found.step, found.decoding, found.both, found.memory.free) > 0
    assert (found.cached is not None) == bool(changes)
    assert found.compiling is None
    assert list(found.alternatives) == ["memory_format=channels_last", "precision=bfloat16"]
    assert all(gain > 0 for gain in found.alternatives.values())


def test_an_option_that_cannot_be_measured_leaves_the_others(monkeypatch):
    speed_of, calls = Candidate.speed_of, []

    def failing(candidate, other, seconds):
        calls.append(other.spec)
        if len(calls) == 1:
            raise RuntimeError("no such kernel\nand more")
        return speed_of(candidate, other, seconds)

    monkeypatch.setattr(Candidate, "speed_of", failing)
    with tiny_runs.tiny_network():
        *_, found = bench.bench(tiny_runs.spec(), tiny_runs.images(), seconds=0.02)
    assert found.alternatives["memory_format=channels_last"] == "no such kernel"
    assert not isinstance(found.alternatives["precision=bfloat16"], str)


def test_a_cache_without_room_is_not_measured(monkeypatch):
    def full(*_, **__):
        raise DataError("no room")
        yield

    monkeypatch.setattr(bench, "build_cache", full)
    with tiny_runs.tiny_network():
        *_, found = bench.bench(tiny_runs.spec(cache="ram"), tiny_runs.images(), seconds=0.02)
    assert found.cached is None
    assert found.both > 0


def test_memory_that_runs_out_is_reported(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Candidate, "seconds", full)
    expected = r"^memory ran out at `batch_size=3`; use `batch_size=1`\. The original message: CUDA out of memory"
    with tiny_runs.tiny_network(), pytest.raises(TrainingError, match=expected):
        list(bench.bench(tiny_runs.spec(), tiny_runs.images(), seconds=0.02))


def test_the_command(tmp_path):
    make_images(tmp_path / "images")
    options = ["--model", "shufflenet_v2_x0_5", "--batch-size", "4", "--device", "cpu", "--workers", "0", "--cache"]
    command = ["bench", "--data", tmp_path / "images", *options, "none", "--seconds", "0.1"]
    result = CliRunner().invoke(app, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("shufflenet_v2_x0_5, 32 px, batch 4, float32, channels_last, not compiled, on cpu")
    assert [line.split("  ")[0] for line in lines if line.startswith(("training", "input", "both"))] == [
        "training step, on a batch in memory",
        "input pipeline, decoding",
        "both together",
    ]
    assert any(line.startswith("limit: ") for line in lines)
    assert any(line.startswith("memory of a step: about ") for line in lines)
    assert list(tmp_path.iterdir()) == [tmp_path / "images"]
