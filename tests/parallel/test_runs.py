"""Runs over several processes: the same bits for any number of them, and the same end for all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def found(script, folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(TESTS / "parallel" / script), str(folder), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def check(results):
    numbers, changes = results["numbers"], results["changes"]
    expected = numbers["plain"][0]
    for name, of_worlds in numbers.items():
        assert len(of_worlds) > 1
        assert set(of_worlds) == {of_worlds[0]}, name
    assert {each["result"] for each in changes.values()} == {expected}
    # A process is asked to stop after a step, and all of them stop together, at most two steps later.
    for step, each in changes.items():
        assert each["stops"] == sorted(each["stops"])
        assert int(step) <= each["stops"][0] <= int(step) + 2
        assert each["stops"][-1] == 7


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_the_number_of_processes_may_change_without_changing_a_bit(tmp_path):
    check(found("runs.py", tmp_path, "few"))


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_the_number_of_processes_may_change_at_any_step_with_any_settings(tmp_path):
    check(found("runs.py", tmp_path, "all"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_all_processes_end_alike(tmp_path):
    ends = found("ends.py", tmp_path, "few")
    image = tmp_path / "bad" / "train" / "odd" / "5.png"
    expected = {
        "an image cannot be read": (65, f"cannot read the image {image}: image file is truncated"),
        "the disk is full": (74, "No space left on device: state.safetensors"),
        "the loss is not finite": (1, "the loss or its gradient became infinite or nan at step 2"),
        "a setting is wrong": (2, "a batch must have equally many examples for each of its 2 parts"),
    }
    for name, (code, message) in expected.items():
        one, two = ends[name]
        assert one["codes"] == [code]
        assert two["codes"] == [code, code]
        [said_by_one], [said_by_two] = one["said"], two["said"]  # one of two processes talks
        assert said_by_one.startswith(message)
        assert said_by_two.startswith(message)
    assert ends["one runs out of memory"]["codes"] == [1, 1]
    [said] = ends["one runs out of memory"]["said"]
    assert said.startswith("memory ran out at --batch-size 4; use --batch-size 2 in a new run")
    assert ends["one is asked to stop"]["codes"] == [0, 143]
    assert ends["one is asked to stop"]["said"] == []
    assert ends["one is asked to stop"]["saved"] in (3, 4, 5)  # asked in the third step
    assert ends["one is killed"]["codes"] == [75, -9]
    [said] = ends["one is killed"]["said"]
    assert said.startswith("another process of the run has ended without a message")


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc")
def test_a_process_that_hangs_is_named(tmp_path):
    ends = found("ends.py", tmp_path, "all")
    assert ends["one hangs"]["codes"] == [75, -9]
    [said] = ends["one hangs"]["said"]
    assert said.startswith("process 1 has not answered for 20 s; its last sign of life was during: ")


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc")
def test_runs_whose_processes_are_killed_resume_to_the_same_result(tmp_path, capsys):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, str(TESTS / "kill_parallel_runs.py"), str(tmp_path / "runs"), "0", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    with capsys.disabled():
        print(f"\n{done.stdout.splitlines()[-1]}")
    assert done.stdout.endswith("tried: 0 missed, 0 wrong or lost, 0 hung or ended otherwise, 0 left behind\n")
    assert done.returncode == 0
