"""Where trials train: a device and a number of cores that are there, decided by the machine that has them."""

from __future__ import annotations

from typing import Any

import pytest

from search.devices import (
    check_batches,
    check_precision_here,
    check_xla,
    cores_per_worker,
    device_here,
    metered_cores,
    resolve_device,
    warnings_here,
)
from search.study import Study, StudyError, read_study


def study(**compute: Any) -> Study:
    text = "name: mini\ndata: {source: digits, image_size: 32}\nbudgets: [1e10 FLOPs]\n"
    return read_study(f"{text}compute: {compute!r}".replace("'", ""), source="mini.yaml")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this machine have so many GPUs."""

    def there(count: int) -> None:
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)

    return there


@pytest.fixture
def tpu_chips(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this machine have so many TPU chips."""

    def there(count: int) -> None:
        monkeypatch.setattr("trainables.runtime.tpu_chips_here", lambda: count)

    return there


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("there", "compute", "device"),
    [(0, {}, "cpu"), (2, {"slices": 2}, "cuda"), (2, {"device": "cpu"}, "cpu"), (4, {"workers_per_slice": 4}, "cuda")],
)
def test_a_cluster_of_ones_own_is_this_machine(there: int, compute: dict[str, Any], device: str, gpus: Any) -> None:
    gpus(there)
    assert resolve_device(study(**compute), own_cluster=True) == device_here(study(**compute)) == device


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpus_that_are_not_there_are_refused(device: str, gpus: Any) -> None:
    gpus(2)
    with pytest.raises(StudyError, match=r"^mini.yaml: .* take a GPU each \(4\), but this machine has 2; lower"):
        resolve_device(study(device=device, slices=2, workers_per_slice=2), own_cluster=True)


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
@pytest.mark.parametrize("there", [0, 2])
def test_what_a_cluster_has_is_not_to_be_seen_from_here(device: str, there: int, gpus: Any) -> None:
    gpus(there)
    assert resolve_device(study(device=device, slices=8), own_cluster=False) == device


@pytest.mark.parametrize(
    ("compute", "cores"),
    [
        ({}, 8),
        ({"slices": 2}, 4),
        ({"slices": 3}, 2),
        ({"slices": 2, "workers_per_slice": 2}, 2),
        ({"slices": 9}, 1),
        ({"cores_per_slice": 6, "workers_per_slice": 2}, 3),
    ],
)
@pytest.mark.usefixtures("eight_cores")
def test_workers_share_the_machines_cores(compute: dict[str, Any], cores: int) -> None:
    assert cores_per_worker(study(**compute)) == cores


@pytest.mark.parametrize(
    ("nodes", "cores"), [([8, 7], 7), ([16, 15], 15), ([32], 16), ([4, 4, 4], 4), ([2, 9], 4), ([1], 1), ([], 1)]
)
def test_no_worker_straddles_two_nodes(nodes: list[int], cores: int) -> None:
    assert cores_per_worker(study(slices=2), nodes) == cores


@pytest.mark.usefixtures("eight_cores")
def test_core_hours_count_threads_or_gpus() -> None:
    two = study(slices=2, workers_per_slice=2)
    assert metered_cores(two, "cpu") == 4
    assert metered_cores(two, "cuda") == 2


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    "compute", [{}, {"slices": 8}, {"slices": 3}, {"cores_per_slice": 8}, {"slices": 2, "workers_per_slice": 4}]
)
def test_a_study_that_fits_the_machine_is_not_warned_of(compute: dict[str, Any]) -> None:
    assert warnings_here(study(**compute)) == []


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("compute", "said"),
    [
        ({"cores_per_slice": 64}, "64 CPU threads asked for (slices 1 x 64)"),
        ({"slices": 50}, "50 CPU threads asked for (slices 50 x 1)"),
        ({"slices": 2, "workers_per_slice": 8}, "16 CPU threads asked for (slices 2 x 8)"),
        ({"slices": 3, "workers_per_slice": 2, "cores_per_slice": 7}, "18 CPU threads asked for (slices 3 x 6)"),
    ],
)
def test_more_threads_than_cores_are_warned_of(compute: dict[str, Any], said: str) -> None:
    (line,) = warnings_here(study(**compute))
    assert line.startswith(f"mini.yaml: compute: {said}, but this machine has 8: ")
    assert line.endswith("lower compute.slices, workers_per_slice or cores_per_slice")


@pytest.mark.parametrize("there", [True, False])
def test_a_precision_must_be_there_on_the_machine(there: bool, gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: there)
    check_precision_here(study_at("float32"))
    if there:
        check_precision_here(study_at("bfloat16"))
    else:
        with pytest.raises(StudyError, match=r"^mini.yaml: training.precision: .* is not there on CPU: use float32"):
            check_precision_here(study_at("bfloat16"))


def test_a_precision_on_a_gpu_that_is_elsewhere_is_not_to_be_seen_from_here(gpus: Any) -> None:
    gpus(0)
    check_precision_here(study_at("bfloat16", device="cuda"))


def test_a_gpu_is_asked_in_a_process_of_its_own(gpus: Any) -> None:
    """Which sees no GPU here: what it raises arrives as the study's."""
    gpus(1)
    with pytest.raises(StudyError, match=r"^mini.yaml: training.precision: device 'cuda' is not there"):
        check_precision_here(study_at("bfloat16", device="cuda"))


def study_at(precision: str, device: str = "auto") -> Study:
    text = "name: mini\ndata: {source: digits, image_size: 32}\nbudgets: [1e10 FLOPs]\n"
    return read_study(f"{text}training: {{precision: {precision}}}\ncompute: {{device: {device}}}", source="mini.yaml")


# ------------------------------------------------------------------------------------------------ TPUs, and their path


def test_a_tpu_goes_before_a_gpu(gpus: Any, tpu_chips: Any) -> None:
    gpus(1)
    tpu_chips(4)
    assert device_here(study()) == resolve_device(study(), own_cluster=True) == "tpu"
    assert resolve_device(study(device="cuda"), own_cluster=True) == "cuda"


def test_a_tpu_that_is_not_there_is_refused(tpu_chips: Any) -> None:
    tpu_chips(0)
    with pytest.raises(StudyError) as refused:
        resolve_device(study(device="tpu"), own_cluster=True)
    assert str(refused.value) == (
        "mini.yaml: compute.device: 'tpu' given, and this machine has no TPU; set compute.device to auto or cpu, or "
        "name a cluster with --address"
    )
    assert resolve_device(study(device="tpu", slices=2), own_cluster=False) == "tpu"


@pytest.mark.parametrize("device", ["auto", "tpu"])
def test_a_machine_is_one_slice_of_tpu(device: str, tpu_chips: Any) -> None:
    tpu_chips(4)
    with pytest.raises(StudyError, match=r"2 slices take a TPU host each, but this machine is one; lower compute.sli"):
        resolve_device(study(device=device, slices=2), own_cluster=True)


@pytest.mark.parametrize("there", [0, 4])
def test_a_slice_of_several_hosts_is_no_one_machine(there: int, tpu_chips: Any) -> None:
    tpu_chips(there)
    of = study(device="tpu", accelerator="tpu-v4-16")
    said = "a slice of tpu-v4-16 has 2 hosts, but this machine is one" if there else "this machine has no TPU"
    with pytest.raises(StudyError, match=rf"^mini.yaml: compute.device: 'tpu' given, and {said}; .*--address"):
        resolve_device(of, own_cluster=True)
    assert resolve_device(of, own_cluster=False) == "tpu"


@pytest.mark.parametrize("device", ["auto", "tpu"])
def test_workers_of_a_slice_of_tpus_are_its_hosts(device: str) -> None:
    said = "workers_per_slice: 4 given; allowed on tpu: the hosts of compute.accelerator; set device: tpu and accelera"
    with pytest.raises(StudyError, match=rf"^mini.yaml: compute.{said}tor: tpu-v4-32, which has 4 hosts$"):
        check_xla(study(device=device, workers_per_slice=4), "tpu")


def test_xlas_cpu_device_is_one_process() -> None:
    with pytest.raises(StudyError, match=r"^mini.yaml: compute.workers_per_slice: 2 given; allowed on xla-cpu: 1, for"):
        check_xla(study(device="xla-cpu", workers_per_slice=2), "xla-cpu")


def batches(device: str, workers: int = 1, **training: int) -> Study:
    text = "name: mini\ndata: {source: digits, image_size: 32}\nbudgets: [1e10 FLOPs]\n"
    named = f", accelerator: tpu-v4-{8 * workers}" if device == "tpu" else ""
    compute = f"compute: {{device: {device}, cores_per_slice: 3{named}}}"
    return read_study(f"{text}training: {training!r}\n{compute}".replace("'", ""), source="mini.yaml")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            batches("tpu", batch_size=30),
            "batch_size: 30 given; allowed: multiples of the 4 TPU chips of a slice; ",
        ),
        (batches("tpu", eval_batch_size=2), "eval_batch_size: 2 given; allowed: multiples of the 4 TPU "),
        (
            batches("tpu", 2, batch_size=68),
            "batch_size: 68 given; allowed: multiples of the 8 TPU ",
        ),
        (
            batches("tpu", 2, micro_batch_size=6),
            "micro_batch_size: 6 given; allowed: multiples of the 4 TPU ",
        ),
        (
            batches("xla-cpu", batch_size=8, eval_batch_size=9),
            "batch_size: 8 given; allowed: multiples of the 3 ",
        ),
    ],
)
def test_batches_that_xla_cannot_split_are_refused(wrong: Study, said: str, tpu_chips: Any) -> None:
    tpu_chips(0)
    with pytest.raises(StudyError) as refused:
        check_batches(wrong, wrong.compute.device)
    assert str(refused.value).startswith(f"mini.yaml: training.{said}")
    check_batches(wrong, "cpu")


def test_a_search_refuses_such_batches_before_its_cluster() -> None:
    with pytest.raises(StudyError, match="use 9"):
        resolve_device(batches("xla-cpu", batch_size=8, eval_batch_size=9), own_cluster=True)
    assert resolve_device(batches("xla-cpu", batch_size=9, eval_batch_size=9), own_cluster=True) == "xla-cpu"


def test_what_runs_by_xla_has_every_precision_and_is_not_asked() -> None:
    check_precision_here(study_at("bfloat16", device="tpu"))
    check_xla(study_at("bfloat16"), "cpu")


@pytest.mark.parametrize(("chips", "cores"), [(0, 16), (1, 4)])
def test_core_hours_of_a_tpu_count_both_cores_of_every_chip(chips: int, cores: int, tpu_chips: Any) -> None:
    """Where there is none, those of a v4 host."""
    tpu_chips(chips)
    assert metered_cores(study(device="tpu", accelerator="tpu-v4-16"), "tpu") == cores
