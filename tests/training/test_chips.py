"""Slices by name, and what the compiler knows of them."""

import pytest

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.training import chips
from zeroprompt_jax.training.chips import CHIPS, Topology


def test_a_slice_is_read_as_the_tpu_api_writes_it():
    found = Topology.parse("v5p:2x4x4", slices=2)
    assert (found.kind, found.shape, found.slices, found.chip) == ("v5p", (2, 4, 4), 2, CHIPS["v5p"])
    assert str(found) == "2 × v5p:2x4x4" and str(Topology.parse("v5e:2x4")) == "v5e:2x4"


@pytest.mark.parametrize(
    "accelerator, topology",
    [
        ("v5litepod-1", "v5e:1x1"),
        ("v5litepod-8", "v5e:2x4"),
        ("v5litepod-256", "v5e:16x16"),
        ("v6e-64", "v6e:8x8"),
        ("v4-8", "v4:2x2x1"),
        ("v4-64", "v4:2x4x4"),
        ("v5p-128", "v5p:4x4x4"),
    ],
)
def test_an_accelerator_type_is_the_topology_that_cloud_tpu_gives_it(accelerator, topology):
    assert str(Topology.parse(accelerator)) == topology


@pytest.mark.parametrize(
    "text, slices, sentence",
    [
        ("v5f:2x4", 1, "Unknown TPU 'v5f'. Did you mean 'v5"),
        ("v5e:2x4x4", 1, "'v5e:2x4x4' is not a v5e slice: write v5e:4x4, chips along each side."),
        ("v4:2x4", 1, "'v4:2x4' is not a v4 slice: write v4:4x4x4, chips along each side."),
        ("v5e:0x4", 1, "is not a v5e slice"),
        ("v5e", 1, "is not a v5e slice"),
        ("v5p-24", 1, "The topology 'v5p-24' is not a v5p slice: write v5p:4x4x4, chips along each side."),
        ("v4-1", 1, "is not a v4 slice"),
        ("v5e:2x4", 0, "The number of slices is 0; it must be at least 1."),
    ],
)
def test_mistakes_are_named(text, slices, sentence):
    with pytest.raises(UserError) as e:
        Topology.parse(text, slices)
    assert sentence in str(e.value)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(chips, "installed", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'zeroprompt_jax\[tpu\]'"):
        Topology.parse("v5e:2x4").devices()


@pytest.mark.skipif(not chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'")
@pytest.mark.parametrize(
    "text, slices, count", [("v5e:2x4", 1, 8), ("v4:2x2x2", 1, 8), ("v5p:2x2x2", 1, 8), ("v6e:2x4", 2, 16)]
)
def test_a_chip_is_one_device(text, slices, count):
    devices = Topology.parse(text, slices).devices()
    assert len(devices) == count and len({getattr(d, "slice_index", 0) for d in devices}) == slices


@pytest.mark.skipif(not chips.installed(), reason="needs libtpu: pip install -e '.[tpu]'")
def test_a_shape_that_libtpu_does_not_have_is_its_own_sentence():
    with pytest.raises(UserError, match="libtpu has no topology 'v5e:3x3'"):
        Topology.parse("v5e:3x3").devices()
