"""TPU topologies: what they hold, what they are called, and which do not exist."""

from __future__ import annotations

import pytest

from clusters.tpu import HBM_BYTES, HBM_BYTES_PER_S, PEAK_FLOPS_PER_S, Topology


@pytest.mark.parametrize(
    ("text", "chips", "cores", "hosts", "accelerator"),
    [
        ("v4:2x2x1", 4, 8, 1, "v4-8"),
        ("v4:2x2x2", 8, 16, 2, "v4-16"),
        ("v4:2x2x4", 16, 32, 4, "v4-32"),
        ("v4:2x4x4", 32, 64, 8, "v4-64"),
        ("v4:4x4x4", 64, 128, 16, "v4-128"),
        ("v4:8x8x12", 768, 1536, 192, "v4-1536"),
        ("v4:16x16x16", 4096, 8192, 1024, "v4-8192"),
    ],
)
def test_a_topology_says_what_it_holds(text: str, chips: int, cores: int, hosts: int, accelerator: str) -> None:
    topology = Topology.parse(text)
    assert (topology.chips, topology.cores, topology.hosts, topology.accelerator) == (chips, cores, hosts, accelerator)
    assert str(topology) == text


def test_one_host_may_be_written_either_way_round() -> None:
    assert Topology.parse("v4:1x2x2") == Topology.parse("v4:2x2x1")


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("v5e:2x2", "write v4:2x2x1"),
        ("v4-8", "write v4:2x2x1"),
        ("2x2x1", "write v4:2x2x1"),
        ("", "write v4:2x2x1"),
        ("v4:2x2", "with three dimensions"),
        ("v4:2x2x1x1", "with three dimensions"),
        ("v4:2x-2x1", "with three dimensions"),
        ("v4:0x2x2", "no chips"),
        ("v4:4x2x2", "write v4:2x2x4"),
        ("v4:1x1x1", "use v4:2x2x1"),
        ("v4:3x3x3", "use v4:4x4x4"),
        ("v4:4x4x6", "use v4:4x4x8"),
        ("v4:1x2x4", "use v4:2x2x4"),
        ("v4:2x2x8", "use v4:4x4x8"),
        ("v4:16x16x20", "4096 chips"),
        ("v4:4x4x32", "use v4:8x8x8"),
        ("v4:4x4x20", "use v4:16x16x16"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line_that_mends_it(text: str, mend: str) -> None:
    with pytest.raises(ValueError, match="allowed: ") as refused:
        Topology.parse(text)
    message = str(refused.value)
    assert repr(text) in message
    assert mend in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "shape", "hosts"),
    [  # as Google lists them ("TPU v4", cloud.google.com/tpu/docs/v4)
        ("tpu-v4-8", "2x2x1", 1),
        ("v4-16", "2x2x2", 2),
        ("tpu-v4-32", "2x2x4", 4),
        ("tpu-v4-64", "2x4x4", 8),
        ("tpu-v4-128", "4x4x4", 16),
        ("tpu-v4-256", "4x4x8", 32),
        ("TPU-V4-512", "4x8x8", 64),
        ("tpu-v4-1024", "8x8x8", 128),
        ("tpu-v4-1536", "8x8x12", 192),
        ("tpu-v4-2048", "8x8x16", 256),
        ("tpu-v4-4096", "8x16x16", 512),
    ],
)
def test_a_name_counts_cores_and_has_a_shape(name: str, shape: str, hosts: int) -> None:
    topology = Topology.of_accelerator(name)
    assert (topology.shape, topology.hosts) == (shape, hosts)
    assert topology.accelerator == name.lower().removeprefix("tpu-")
    assert Topology.parse(str(topology)) == topology


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("tpu-v4-9", "use tpu-v4-8 or tpu-v4-16"),
        ("tpu-v4-4", "use tpu-v4-8"),
        ("tpu-v4-24", "use tpu-v4-16 or tpu-v4-32"),
        ("tpu-v4-100", "use tpu-v4-64 or tpu-v4-128"),
        ("tpu-v4-896", "use tpu-v4-768 or tpu-v4-1024"),
        ("tpu-v4-8192", "use tpu-v4-4096"),
        ("tpu-v5e-8", "write tpu-v4-8"),
        ("v4", "write tpu-v4-8"),
        ("", "write tpu-v4-8"),
    ],
)
def test_a_name_that_no_slice_has_is_refused_with_those_beside_it(name: str, mend: str) -> None:
    with pytest.raises(ValueError, match="allowed: tpu-v4-8 to tpu-v4-4096, which count cores") as refused:
        Topology.of_accelerator(name)
    message = str(refused.value)
    assert message.startswith(repr(name))
    assert message.endswith(mend) or mend in message
    assert "\n" not in message


def test_a_core_has_half_of_its_chip() -> None:
    assert (PEAK_FLOPS_PER_S, HBM_BYTES, HBM_BYTES_PER_S) == (137.5e12, 16 * 2**30, 614e9)
