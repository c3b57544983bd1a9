"""Messages of the library in the words of the command line."""

import pytest
from ftrain_cli.errors import reported
from ftrain_cli.messages import as_flags

from ftrain.errors import BusyError, CheckpointError, DataError, Interrupted, SettingsError, TrainingError


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`batch_size` is 64, but there are 18 images", "--batch-size is 64, but there are 18 images"),
        ("use `accumulate=4`", "use --accumulate 4"),
        ("resume anyway with `override=True`", "resume anyway with --override"),
        ("try `compile=False`", "try --no-compile"),
        ("start with `lr=1e-3` and `warmup_epochs=2.5`", "start with --lr 1e-3 and --warmup-epochs 2.5"),
        ("resume it with `resume=runs/a b`", "resume it with --resume runs/a b"),
        ("`device=cuda:1` is not available", "--device cuda:1 is not available"),
        ("`ftrain replay` shows the step", "`ftrain replay` shows the step"),
        ("no parameter is named", "no parameter is named"),
    ],
)
def test_parameters_become_flags(message, expected):
    assert as_flags(message) == expected


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (SettingsError("`lr` must be a number > 0; got -1"), 2, "ftrain: --lr must be a number > 0; got -1\n"),
        (DataError("cannot read a.png"), 65, "ftrain: cannot read a.png\n"),
        (CheckpointError("it is damaged"), 65, "ftrain: it is damaged\n"),
        (TrainingError("memory ran out"), 1, "ftrain: memory ran out\n"),
        (BusyError("in use; choose another `out`"), 75, "ftrain: in use; choose another --out\n"),
        (KeyboardInterrupt(), 130, "ftrain: interrupted\n"),
        (Interrupted(15), 143, "ftrain: interrupted\n"),
        (Interrupted(1), 129, "ftrain: interrupted\n"),
        (
            KeyError("x"),
            1,
            "ftrain: KeyError: 'x' (this is a bug in ftrain; `ftrain --debug ...` shows where)\n",
        ),
    ],
)
def test_an_error_ends_a_command_with_one_message_and_its_exit_code(error, code, expected, capsys):
    @reported
    def command():
        raise error

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == code
    assert capsys.readouterr().err == expected
