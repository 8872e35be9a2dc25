"""What a slice's worker asks of Ray, on each device."""

from __future__ import annotations

import pytest

from clusters.tpu import Topology
from search.lease import scaling_of
from search.slices import FleetPlan


@pytest.mark.parametrize(
    ("device", "accelerator", "asked", "needs"),
    [
        ("cpu", None, {"CPU": 3.0}, "6 CPU"),
        ("xla-cpu", None, {"CPU": 3.0}, "6 CPU"),
        ("cuda", None, {"CPU": 3.0, "GPU": 1.0}, "6 CPU and 2 GPU"),
        ("tpu", "v4-16", {"CPU": 3.0, "TPU": 4.0}, "a whole slice of tpu-v4-16 (6 CPU and 8 TPU)"),
    ],
)
def test_a_worker_asks_for_its_cores_and_its_devices(
    device: str, accelerator: str | None, asked: dict[str, float], needs: str
) -> None:
    topology = Topology.of_accelerator(accelerator) if accelerator else None
    plan = FleetPlan(slices=1, workers=2, cores=3, device=device, recycle_after=None, max_errors=1, topology=topology)
    assert plan.resources() == asked
    assert plan.needs() == needs


@pytest.mark.parametrize("name", ["tpu-v4-8", "tpu-v4-16", "tpu-v4-256", "tpu-v4-4096"])
def test_ray_train_gives_every_worker_all_chips_of_its_host(name: str) -> None:
    topology = Topology.of_accelerator(name)
    scaling = scaling_of(topology.hosts, {"CPU": 3.0, "TPU": 4.0}, topology)
    assert (scaling.num_workers, scaling.use_tpu) == (topology.hosts, True)
    assert (scaling.topology, scaling.accelerator_type) == (topology.shape, "TPU-V4")
    assert scaling.total_resources["TPU"] == topology.chips


def test_a_machine_of_ones_own_need_not_know_what_it_is() -> None:
    scaling = scaling_of(1, {"CPU": 3.0, "TPU": 4.0}, None)
    assert (scaling.use_tpu, scaling.accelerator_type) == (True, None)
    assert scaling.total_resources == {"CPU": 3.0, "TPU": 4.0}


def test_workers_without_chips_are_no_slice_of_tpus() -> None:
    assert not scaling_of(2, {"CPU": 3.0}, None).use_tpu
    assert scaling_of(2, {"CPU": 3.0, "GPU": 1.0}, None).use_gpu
