"""What a runtime promises, on the CPU; and that two workers train as one does."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

import trainables.loop
from tests.trainables.runtime_conformance import RuntimeConformance
from tests.trainables.trials import Events, tiny_trial
from trainables.checkpoint import Checkpoints
from trainables.config import DataConfig, TrialConfig, TrialRefused
from trainables.loop import train
from trainables.runtime import Runtime, select_runtime
from trainables.runtime.torch import peak_of


@pytest.fixture
def runtime():
    before = torch.get_num_threads()
    yield select_runtime("cpu", cores=1)
    torch.set_num_threads(before)


class TestTorchRuntime(RuntimeConformance):
    """On the CPU."""


def test_it_knows_itself(runtime):
    assert (runtime.cores, runtime.devices, runtime.device.type) == (1, 1, "cpu")
    assert (runtime.compilations, runtime.compile_s) == (0, 0)
    assert runtime.mark() is None  # the host waits for every step


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(TrialRefused, match="device 'gpu' is not known: use auto, cpu, cuda, tpu, xla-cpu"):
        select_runtime("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(TrialRefused, match="device 'cuda' is not there"):
            select_runtime("cuda")


def test_a_precision_that_is_not_there_is_refused(runtime, monkeypatch):
    runtime.check_precision("float32")
    monkeypatch.setattr(runtime, "_has_bfloat16", lambda: False)
    with pytest.raises(TrialRefused, match="precision 'bfloat16' is not there on CPU: use float32"):
        runtime.check_precision("bfloat16")


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("Tesla V100-SXM2-16GB", "float32", 15.7e12),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("Tesla T4", "float32", 8.1e12),
        ("NVIDIA GeForce RTX 4090", "bfloat16", None),
    ],
)
def test_peaks_are_known_by_device_name(name, precision, peak):
    assert peak_of(name, precision) == peak


def on_folder(path: str) -> dict:
    data = DataConfig(source="folder", path=path, image_size=8, held_out_fraction=0.25)
    return {"data": data, "batch_size": 2, "model__classes": 2}


def write_images(folder: Path) -> Path:
    """Eight images of each of two classes, one of which no worker can read."""
    for name in ("five", "six"):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (8, 8), (number * 30, 0, 99)).save(folder / name / f"{number}.png")
    bad = folder / "six" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    return bad


def refused(config: TrialConfig, runtime: Runtime) -> str:
    """What the trial is refused with."""
    try:
        return train(config, runtime, Events()).outcome
    except TrialRefused as error:
        return str(error)


def without_memory(*_args: object, **_settings: object) -> float:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def worker(rank: int, world: int, folder: str) -> None:
    """One of the workers that train a trial together."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    runtime = select_runtime("cpu", cores=1)
    events = Events(stop_at=3 if rank == 0 else None)  # only rank 0 hears of the stop
    whole = {"model__drop_rate": 0.0, "model__drop_path_rate": 0.0, "log_points": 6}
    config = tiny_trial(f"{folder}/trial", **whole)
    stopped = train(config, runtime, events, should_stop=events.should_stop)
    assert (stopped.outcome, stopped.step) == ("stopped", 3)
    result = train(config, runtime, events)
    points = [point for event in events.named("progressed") for point in event["points"]]
    in_parts = train(tiny_trial(f"{folder}/parts", micro_batch_size=3, **whole), runtime, Events())
    refusal = refused(tiny_trial(f"{folder}/refused", **on_folder(f"{folder}/images")), runtime)
    one_sided = on_folder(f"{folder}/nowhere") if rank == 1 else {}
    refusals = [refusal, refused(tiny_trial(f"{folder}/one-sided", **one_sided), runtime)]
    trainables.loop.learning_rate_at = without_memory
    refusals.append(refused(tiny_trial(f"{folder}/large"), runtime))
    outcome = {"result": result.to_dict(), "in_parts": in_parts.heldout_loss, "points": points, "refusals": refusals}
    torch.save(outcome, f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_give_the_single_workers_losses(runtime, tmp_path: Path):
    config = tiny_trial(tmp_path / "single", model__drop_rate=0.0, model__drop_path_rate=0.0, log_points=6)
    alone = Events()
    single = train(config, runtime, alone)
    bad = write_images(tmp_path / "images")
    mp.spawn(worker, args=(2, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]

    losses = [point[1] for event in alone.named("progressed") for point in event["points"]]
    assert [point[1] for point in ranks[0]["points"]] == pytest.approx(losses, abs=1e-5)
    assert ranks[1]["points"] == []  # rank 0 alone reports
    for rank in ranks:
        assert rank["result"]["heldout_loss"] == pytest.approx(single.heldout_loss, abs=1e-5)
        assert rank["in_parts"] == pytest.approx(single.heldout_loss, abs=1e-5)
        assert rank["result"]["heldout_accuracy"] == pytest.approx(single.heldout_accuracy, abs=0.02)
        assert rank["result"]["meter"]["images"] == single.meter["images"]
        assert rank["result"]["meter"]["cores"] == 2
        met_by_one, set_up_of_one, by_both = rank["refusals"]  # none waits for the other
        assert str(bad) in met_by_one
        assert "nowhere' does not exist" in set_up_of_one
        assert "does not fit the device's memory" in by_both
    weights = [Checkpoints(str(tmp_path / name), keep=1).load_latest()[1]["model"] for name in ("single", "trial")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
