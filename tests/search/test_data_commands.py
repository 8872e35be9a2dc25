"""`convscale data convert` and `convscale data index`: what they tell, and that the data section they give works."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from search import cli, data_commands
from tests.trainables.test_data_converting import picture
from tests.trainables.test_data_sources import write_digits
from trainables.config import DataConfig
from trainables.data import open_splits
from trainables.data.building import alone
from trainables.data.storage import open_storage

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in a folder of its own: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convscale", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_a_folder_becomes_a_data_set_whose_section_may_be_pasted(run: Callable[..., tuple[int, str, str]]) -> None:
    write_digits(Path("images"), ".png", split=True)
    status, out, err = run("convert", "images", "out", "--workers", "1")
    assert (status, err) == (0, "")
    told = r"Looking at the files of images\n6 images to train on and 3 held out, of 3 classes, in 2 shards of 25"
    assert re.match(told, out), out
    section = yaml.safe_load(out[out.index("data:") :])["data"]
    assert section == {"source": "shards", "path": "out", "image_size": 224, "augment": "crop"}
    assert len(open_splits(DataConfig("shards", 8, path="out")).train) == 6
    status, out, _ = run("convert", "images", "out", "--workers", "1")
    assert (status, out.splitlines()[1][:50]) == (0, "out holds these already: 6 images to train on and ")


def test_images_left_out_are_named(run: Callable[..., tuple[int, str, str]]) -> None:
    write_digits(Path("images"), ".png", split=False)
    folder = next(Path("images").iterdir())
    for number in range(12):
        (folder / f"bad{number:02}.png").write_bytes(b"bad")
    status, _, err = run("convert", "images", "out", "--workers", "1")
    assert status == 2
    assert re.match(
        r"convscale: cannot read image '.*/bad\d\d.png' \(cannot identify image file\); put a good one", err
    )
    status, out, _ = run("convert", "images", "out", "--workers", "1", "--bad-images", "skip")
    assert status == 0
    assert len(re.findall(r"/bad\d\d\.png", out)) == 10
    assert ", and 2 more" in out


def test_shards_that_are_there_become_a_data_set(run: Callable[..., tuple[int, str, str]]) -> None:
    write_digits(Path("images"), ".png", split=True)
    run("convert", "images", "out", "--workers", "1")
    for name in ("dataset.json", "train.index", "heldout.index"):
        Path("out", name).unlink()
    Path("names.txt").write_text("\n".join("abcd"))
    status, out, _ = run(
        "index", "out", "--train", "train-*.tar", "--heldout", "heldout-{000000..000000}.tar", "--classes", "names.txt"
    )
    told = "Looking for the shards\n6 images to train on and 3 held out, of 4 classes, in 2 shards of "
    assert (status, out[: len(told)]) == (0, told)
    assert "1 of the classes have no image to train on" in out
    assert open_splits(DataConfig("shards", 8, path="out")).classes == tuple("abcd")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["convert", "images", "images/out"],
            "ADDRESS: 'images/out' given, which is inside of the images' own folder;",
        ),
        (
            ["convert", "images", "http://host/x"],
            "ADDRESS: 'http://host/x' given, where nothing can be written; give a",
        ),
        (["convert", "images", "memory://x"], "ADDRESS: 'memory://x' given, where nothing outlives this command"),
        (["convert", "images", "gs://bucket/x"], "'gs://bucket/x' needs the package gcsfs, which is not installed her"),
        (
            ["convert", "images", "out", "--shard-size", "5 miles"],
            "--shard-size: '5 miles' given; allowed: a number with",
        ),
        (["convert", "images", "out", "--bad-images", "no"], "--bad-images: 'no' given; allowed: error or skip"),
        (["convert", "images", "out", "--workers", "0"], "--workers: 0 given; allowed: 1 to 1024"),
        (["convert", "nowhere", "out"], "FOLDER: 'nowhere' does not exist; give a folder that holds train/CLASS/*.jpg"),
        (["convert", "images"], "Missing argument 'ADDRESS'. See convscale --help."),
        (["index", "out"], "Missing option '--train'. See convscale --help."),
        (
            ["index", "out", "--train", "a", "--heldout", "b", "--classes", "x"],
            "--classes: 'x' cannot be read (No such",
        ),
        (
            ["index", ".", "--train", "a.tar", "--heldout", "a.tar"],
            "a.tar' is given twice; give each shard once, to tr",
        ),
        (
            ["convert", "gs://bucket/x", "out"],
            "FOLDER: gs://bucket/x given; allowed: a folder of this machine; copy the",
        ),
        (
            ["convert", "images", "gs:/bucket/x"],
            "'gs:/bucket/x' given; allowed: a folder, or an address with ://; write",
        ),
        (["convert", "images", "x" * 300], "(File name too long); mend that, or give another addr"),
        ([], "Missing command. See convscale --help."),
    ],
)
def test_a_mistake_is_one_line(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    write_digits(Path("images"), ".png", split=True)
    Path("a.tar").touch()
    status, _, err = run(*arguments)
    assert status == 2
    assert err.startswith("convscale: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_second_command_is_refused_while_the_first_is_at_work(run: Callable[..., tuple[int, str, str]]) -> None:
    """Before it looks at what there is, for the first may be about to finish."""
    write_digits(Path("images"), ".png", split=True)
    with alone(open_storage("out")):
        status, _, err = run("convert", "images", "out")
    assert status == 2
    assert "out' is being written by another convscale data; wait for it to end" in err
    assert not any(Path("out").iterdir())


def test_too_little_room_for_what_is_sent_off_is_told(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(Path("images"), ".png", split=True)
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    monkeypatch.setattr(data_commands, "_NOT_KEPT", {})
    status, _, err = run("convert", "images", "memory://spooled", "--workers", "1")
    assert status == 2
    assert " GB there before they are sent off; make room, set TMPDIR, or give fewer --workers or a smaller" in err


def test_a_mistake_of_ours_is_told_as_one_and_what_is_done_stays(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(Path("images"), ".png", split=True)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("while making train-000000.tar")

    monkeypatch.setattr(data_commands, "do_all", fail)
    monkeypatch.setattr(sys, "argv", ["convscale", "data", "convert", "images", "out"])
    with pytest.raises(RuntimeError, match=r"while making train-000000.tar"):
        cli.main()
    assert "A mistake of convscale's own, which follows; what is done stays, and" in capsys.readouterr().out


def test_a_command_that_is_interrupted_says_so_and_goes_on_after(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group of processes, as a terminal sends it."""
    for number in range(600):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, "PNG", (128, 128)))
    program = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from search.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "data", "convert", str(tmp_path / "images"), str(tmp_path / "out"),
               "--shard-size", "64KiB", "--workers", "2"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not any((tmp_path / "out").glob("parts/*")):
        assert process.poll() is None, "it was to be interrupted on its way"
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, err) == (130, "")
    assert re.search(r"Interrupted after .*; the same command goes on from here", out)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout.startswith("Looking at the files of ")
    assert open_splits(DataConfig("shards", 8, path=str(tmp_path / "out"))).train
