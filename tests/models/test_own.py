"""Networks of one's own: loading the factory, building from a seed, and the hash of the source."""

import hashlib
import random
import subprocess
import sys

import pytest
import torch

from ftrain import models
from ftrain.errors import SettingsError

NETWORK = """
import torch

WIDTH = 4

class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = torch.nn.Linear(WIDTH, num_classes)

    def forward(self, inputs):
        return self.fc(inputs)

def make_network(num_classes):
    return Net(num_classes)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_file.py"
    path.write_text(NETWORK)
    return path


def message(function, *args, **options):
    with pytest.raises(SettingsError) as caught:
        function(*args, **options)
    return str(caught.value)


def test_a_factory_in_a_file(file):
    factory = models.load_factory(f"{file}:make_network")
    module = models.build_own(factory, classes=3, seed=7)
    assert module(torch.zeros(2, 4)).shape == (2, 3)
    assert isinstance(models.build_own(models.load_factory(f"{file}:Net"), classes=3, seed=7), torch.nn.Module)


def test_the_parameters_are_those_that_torch_manual_seed_gives_and_no_global_state_changes(file):
    factory = models.load_factory(f"{file}:make_network")
    before = torch.get_rng_state().tolist(), random.getstate()
    built = models.build_own(factory, classes=3, seed=7).state_dict()
    assert (torch.get_rng_state().tolist(), random.getstate()) == before
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = torch.nn.Linear(4, 3)
    assert torch.equal(built["fc.weight"], expected.weight)
    assert torch.equal(built["fc.bias"], expected.bias)
    with torch.device("meta"):  # the caller's default device is ignored
        module = models.build_own(factory, classes=3, seed=7)
    assert module.fc.weight.device.type == "cpu"


def test_a_file_replaces_no_other_module_and_leaves_nothing_beside_it(file):
    path = file.rename(file.with_name("random.py"))
    before = set(sys.modules)
    models.load_factory(f"{path}:make_network")
    assert sys.modules["random"] is random
    (new,) = set(sys.modules) - before
    assert new.startswith("_ftrain_own_")
    assert list(path.parent.iterdir()) == [path]


def test_an_edited_file_is_run_again(file):
    first = models.load_factory(f"{file}:make_network")
    assert models.load_factory(f"{file}:make_network") is first
    file.write_text(NETWORK.replace("WIDTH = 4", "WIDTH = 5"))
    module = models.build_own(models.load_factory(f"{file}:make_network"), classes=3, seed=0)
    assert module.fc.weight.shape == (3, 5)


def test_errors_say_what_was_found_and_what_is_close(file):
    absent = file.with_name("my_fil.py")
    assert message(models.load_factory, f"{absent}:make_network") == (
        f"there is no file {absent}; the closest names are my_file.py"
    )
    assert message(models.load_factory, f"{file}:make_netwrk") == (
        f"there is no function make_netwrk in {file}; the closest names are make_network"
    )
    assert message(models.load_factory, f"{file}:zzz") == f"there is no function zzz in {file}"
    assert message(models.load_factory, f"{file}:WIDTH") == (
        f"WIDTH in {file} is of type int; expected a function that accepts num_classes and returns a torch.nn.Module"
    )
    assert message(models.load_factory, str(file)) == (
        f"expected a Python file and the name of a function in it, such as {file}:make_network; got {file}"
    )
    text = file.with_name("notes.txt")
    text.write_text("")
    assert message(models.load_factory, f"{text}:make") == (
        f"expected a Python file, whose name ends in .py; got {text}"
    )
    assert message(models.load_factory, f"{file.parent}:make").startswith(f"cannot read {file.parent}: Is a directory")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("import absent_package", "ModuleNotFoundError: No module named 'absent_package'"),
        ("raise RuntimeError('\\x1b[2J')", r"RuntimeError: \x1b[2J"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_cannot_be_run(file, content, cause):
    file.write_text(content)
    before = set(sys.modules)
    assert message(models.load_factory, f"{file}:make").startswith(f"cannot run {file}: {cause}")
    assert set(sys.modules) == before


def test_factories_that_do_not_keep_the_contract():
    def without():
        return torch.nn.Linear(1, 1)

    def more(num_classes, width):
        return torch.nn.Linear(width, num_classes)

    def number(num_classes):
        return num_classes

    name = "test_factories_that_do_not_keep_the_contract.<locals>"
    required = "must accept num_classes=N as its only required argument"
    assert message(models.build_own, without, classes=2, seed=0).startswith(f"{name}.without {required}: got an unexp")
    assert message(models.build_own, more, classes=2, seed=0) == (
        f"{name}.more {required}: missing a required argument: 'width'"
    )
    assert message(models.build_own, number, classes=2, seed=0) == (
        f"{name}.number must return a torch.nn.Module, but returned a value of type int"
    )
    with pytest.raises(ValueError, match="`classes` must be at least 1, got 0"):
        models.build_own(number, classes=0, seed=0)
    with pytest.raises(ValueError, match="`seed` must be an integer from 0 to"):
        models.build_own(number, classes=2, seed=-1)


def test_the_hash_of_a_file_is_that_of_its_bytes(file):
    expected = hashlib.sha256(NETWORK.encode()).hexdigest()
    assert models.source_hash(f"{file}:make_network") == expected
    assert models.source_hash(file) == expected
    file.write_text(NETWORK + "\n")
    assert models.source_hash(f"{file}:make_network") != expected
    assert message(models.source_hash, file.with_name("absent.py")).startswith("there is no file ")


def hash_of(path, classes=3):
    return models.source_hash(models.build_own(models.load_factory(f"{path}:make_network"), classes=classes, seed=0))


def test_the_hash_of_a_module_covers_its_source_and_its_structure(file, tmp_path):
    first = hash_of(file)
    assert first == hash_of(file)  # not the values of its parameters, nor where it is
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "other.py"
    copy.write_text(NETWORK)
    assert hash_of(copy) == first
    changed = tmp_path / "changed.py"
    changed.write_text(NETWORK.replace("self.fc(inputs)", "self.fc(-inputs)"))
    assert hash_of(changed) != first
    assert hash_of(file, classes=4) != first
    inner = torch.nn.Sequential(models.build_own(models.load_factory(f"{file}:make_network"), classes=3, seed=0))
    outer = torch.nn.Sequential(models.build_own(models.load_factory(f"{changed}:make_network"), classes=3, seed=0))
    assert models.source_hash(inner) != models.source_hash(outer)


def test_the_hash_of_a_module_covers_its_own_base_classes(tmp_path):
    hashes = []
    for expression in ("inputs + 1", "inputs + 2"):
        path = tmp_path / f"{len(hashes)}.py"
        path.write_text(
            f"import torch\nclass Base(torch.nn.Module):\n    def forward(self, inputs): return {expression}\n"
            "class Net(Base): pass\n"
            "def make_network(num_classes): return Net()\n"
        )
        hashes.append(hash_of(path))
    assert hashes[0] != hashes[1]


WITHOUT_A_FILE = """
import torch
from ftrain import models
for number in (1, 2, 7):
    names = {"torch": torch, "__name__": "nowhere"}
    exec(f'''
class Net(torch.nn.Module):
    @staticmethod
    def added(inputs): return inputs + {number} if inputs.ndim in {{1, 2, 3}} else inputs
    def forward(self, inputs): return self.added(inputs)
''', names)
    print(models.source_hash(names["Net"]()))
"""


def test_the_hash_of_a_class_without_a_file_covers_its_bytecode(capsys):
    exec(WITHOUT_A_FILE, {})
    hashes = capsys.readouterr().out.split()
    assert [len(found) for found in hashes] == [64, 64, 64]
    assert len(set(hashes)) == 3
    elsewhere = subprocess.run([sys.executable, "-c", WITHOUT_A_FILE], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.split() == hashes


def test_the_hash_of_a_library_network_is_that_of_its_structure():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    text = (
        "Sequential(\n  (0): Linear(in_features=2, out_features=3, bias=True)\n  (1): ReLU()\n)"  # as torch prints it
    )
    assert models.source_hash(module) == hashlib.sha256(text.encode()).hexdigest()
