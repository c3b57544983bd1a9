"""The table of networks in the package against the networks."""

import pytest

from ftrain import models
from ftrain.models import table
from ftrain.models.spelling import matching

REMEDY = "run `python tools/make_network_table.py`"
TIMM = table.read().of("timm")


def check_torchvision(names):
    entries = table.read().entries
    assert sorted(table.read().of("torchvision")) == sorted(models.names()), REMEDY
    for name in names:
        assert entries[name] == table.Entry(
            name, models.parameter_count(name), models.smallest_size(name), models.input_size(name)
        ), REMEDY


def test_a_few_of_torchvision():
    check_torchvision(["alexnet", "inception_v3", "maxvit_t", "mobilenet_v3_small", "resnet34", "swin_t", "vit_b_16"])


@pytest.mark.long
def test_all_of_torchvision():
    check_torchvision(models.names())


def test_a_few_of_timm():
    check(["timm/resnet18", "timm/vit_tiny_patch16_224", "timm/tf_efficientnet_lite0", *TIMM[::200]])


@pytest.mark.long
@pytest.mark.parametrize("part", range(8))
def test_all_of_timm(part):
    check(TIMM[part::8])


def check(names):
    installed = set(models.names("timm/*"))
    if table.installed("timm") == table.read().versions["timm"]:
        assert set(TIMM) == installed, REMEDY
    for name in installed.intersection(names):
        entry = table.read().entries[name]
        expected = table.Entry(name, models.parameter_count(name), None, models.input_size(name))
        assert entry == expected, REMEDY


def test_written_out():
    entries = table.read().entries
    assert entries["resnet34"] == table.Entry("resnet34", 21_797_672, 1, 224)
    assert entries["inception_v3"] == table.Entry("inception_v3", 27_161_264, 299, 299)
    assert entries["timm/tf_efficientnet_lite0"] == table.Entry("timm/tf_efficientnet_lite0", 4_652_008, None, 224)
    assert len(table.read().of("torchvision")) == 80 and len(TIMM) == 1364


def test_the_table_is_in_the_order_in_which_it_is_shown():
    for library in ("torchvision", "timm"):
        names = table.read().of(library)
        assert names == matching(names, None)


def test_installed_versions():
    assert table.installed("torchvision").count(".") == 2
    assert table.installed("no-such-library") is None
