"""What a slice's worker asks of Ray, on each device."""

from __future__ import annotations

import pytest
import ray.train

from search.slices import Fleet, FleetPlan


@pytest.mark.parametrize(
    ("device", "asked", "needs"),
    [
        ("cpu", {"CPU": 3.0}, "6 CPU"),
        ("xla-cpu", {"CPU": 3.0}, "6 CPU"),
        ("cuda", {"CPU": 3.0, "GPU": 1.0}, "6 CPU and 2 GPU"),
        ("tpu", {"CPU": 3.0, "TPU": 4.0}, "6 CPU and 8 TPU"),
    ],
)
def test_a_worker_asks_for_its_cores_and_its_devices(device: str, asked: dict[str, float], needs: str) -> None:
    plan = FleetPlan(slices=1, workers=2, cores=3, device=device, recycle_after=None, max_errors=1, chips=4)
    assert plan.resources() == asked
    assert Fleet(plan, address="nowhere:1")._needs() == needs


def test_ray_train_gives_a_lone_worker_all_chips_of_its_host() -> None:
    wanted = FleetPlan(1, 1, 3, "tpu", None, 1, chips=4).resources()
    scaling = ray.train.ScalingConfig(num_workers=1, use_tpu=True, resources_per_worker=wanted)
    assert scaling.total_resources == {"CPU": 3.0, "TPU": 4.0}
