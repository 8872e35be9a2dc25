from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import input as benchmark
from benchmarks.fidelity import Fidelity, exact, fidelity
from benchmarks.input import PEERS, Place, Speed, Window, contenders, make_place, measure


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("input"), photographs=16, heldout_copies=2, workers=1)


def test_the_photographs_are_distinct_and_all_read_the_same(place: Place) -> None:
    files = sorted((place.root / "train").rglob("*.jpg"))
    assert len({path.read_bytes() for path in files}) == 16
    assert len(list((place.root / "val").rglob("*.jpg"))) == 32
    assert sum(path.stat().st_size for path in place.tars) > sum(path.stat().st_size for path in files)


def test_each_round_has_the_speed_of_ours_and_of_both_peers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "BATCH_SIZE", 4)
    ways = contenders(place, "train", workers=1)
    assert set(ways) == {"ours, folder", "ours, shards", "ours, threads", *PEERS}
    found = measure(ways, Window(before=1, batches=2), rounds=1)
    assert [set(one) for one in found] == [set(ways)]
    assert min(min(speed.wall, speed.cpu) for speed in found[0].values()) > 0


def test_there_are_held_out_images_for_all_rounds() -> None:
    window = Window()
    batches = 1 + (1 + benchmark._ROUNDS["val"]) * (window.before + window.batches)
    assert batches * benchmark.BATCH_SIZE <= benchmark._PHOTOGRAPHS * benchmark._HELDOUT_COPIES


def test_evaluation_is_measured_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "BATCH_SIZE", 4)
    ways = contenders(place, "val", workers=1)
    found = measure(ways, Window(before=1, batches=2), rounds=1)
    assert [set(one) for one in found] == [{"ours, folder", *PEERS}]


def test_a_ratio_is_against_the_faster_peer_of_each_round() -> None:
    rounds = [
        {"ours": Speed(30, 12), "torchvision": Speed(10, 4), "WebDataset": Speed(20, 3)},
        {"ours": Speed(30, 12), "torchvision": Speed(15, 6), "WebDataset": Speed(5, 2)},
    ]
    assert benchmark._ratios(rounds, "ours", "wall") == [1.5, 2.0]
    assert benchmark._ratios(rounds, "ours", "cpu") == [2.0, 3.0]
    assert benchmark._of_medians(rounds, "ours", "wall") == 2.4
    assert benchmark._of_medians(rounds, "ours", "cpu") == 2.4


def test_cores_of_a_host_are_told_by_cpu_time_and_by_wall_time_and_not_of_two_threads() -> None:
    rounds = [{"ours, folder": Speed(600, 500), "ours, threads": Speed(900, 600), "torchvision": Speed(400, 250)}]
    said = benchmark._cores_of_a_host("train", rounds, cores=2)
    assert said.endswith("a process for each core: ours, folder 11 / 19, torchvision 22 / 28.")


def test_what_never_rests_is_waited_for_no_longer_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_MOST_REST_S", 0.0)
    ticks = iter(range(100))
    monkeypatch.setattr(benchmark, "_cpu_s", lambda: float(next(ticks)))
    benchmark._wait_for_rest()
    assert next(ticks) == 1


def test_data_that_end_before_the_measurement_are_no_speed() -> None:
    batches = iter([{"label": np.zeros(benchmark.BATCH_SIZE)}])
    with pytest.raises(RuntimeError, match="64 images came in 2 batches"):
        benchmark._take(batches, 2)


def test_our_pixels_are_those_of_the_exact_way_but_for_rounding(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted((place.root / "train").rglob("*.jpg"))[:4]
    found = fidelity(files, 96)
    assert [one.mean < 0.3 and one.psnr_db > 50 for one in found.values()][:2] == [True, True]
    assert min(one.psnr_db for one in found.values()) > 30  # the last is of a JPEG that was scaled down
    monkeypatch.setattr("benchmarks.fidelity.decode_bytes", _exactly)
    assert fidelity(files, 96)["centre, 96 px"] == Fidelity(0.0, float("inf"), 0)


def _exactly(_content: bytes, size: int, name: str, crop: np.ndarray | None) -> np.ndarray:
    with Image.open(Path(name)) as image:
        return exact(image, size, crop)
