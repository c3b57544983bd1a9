import pytest

from ftrain.errors import SettingsError
from ftrain.parallel import Place, place

TORCHRUN = {
    "WORLD_SIZE": "16",
    "RANK": "9",
    "LOCAL_WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "node3",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


def test_torchrun():
    assert place(TORCHRUN) == Place(16, 9, 8, 1, "node0", 29500)


def test_srun():
    assert place(SRUN) == Place(16, 9, 8, 1, "node3", 20_000 + 123456 % 20_000)
    assert place({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}) == Place(16, 9, 8, 1, "10.0.0.1", 1234)


def test_a_batch_script_outside_of_srun_is_one_process():
    batch = {name: value for name, value in SRUN.items() if "STEP" not in name}
    assert place({**batch, "SLURM_PROCID": "0"}) == Place()
    assert place({}) == Place()


def test_the_nodes_of_a_job_are_asked_of_slurm(tmp_path, monkeypatch):
    script = tmp_path / "scontrol"
    script.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[03-05]" ] && printf "node03\\nnode04\\nnode05\\n"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert place({**SRUN, "SLURM_STEP_NODELIST": "node[03-05]"}).address == "node03"


def test_what_is_missing_is_named(monkeypatch):
    incomplete = {name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"}
    with pytest.raises(SettingsError, match="started as one of several, but MASTER_PORT is not set"):
        place(incomplete)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SettingsError, match=r"cannot find out the first node of node\[03-05\]: .*; set MASTER_ADDR"):
        place({**SRUN, "SLURM_STEP_NODELIST": "node[03-05]"})
