"""The store of compiled programs: what it takes in, what it gives out, and what damage costs."""

import os
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainables.runtime.program_cache import ProgramCache, cache_root, key_of, open_cache


def compile_into(cache: ProgramCache, name: str, data: bytes) -> None:
    """What torch_xla does: write an entry into the process's folder, in place."""
    (cache.folder / name).write_bytes(data)


def test_what_one_process_compiled_the_next_has(tmp_path):
    first = ProgramCache(tmp_path / "store")
    compile_into(first, "123", b"program")
    assert first.publish() == 1
    assert first.publish() == 0
    second = ProgramCache(tmp_path / "store")
    assert second.loaded == 1
    assert (second.folder / "123").read_bytes() == b"program"
    assert second.publish() == 0


def test_processes_do_not_see_each_others_unfinished_files(tmp_path):
    first, second = ProgramCache(tmp_path / "store"), ProgramCache(tmp_path / "store")
    assert first.folder != second.folder
    compile_into(first, "123", b"half a pro")
    assert list(second.folder.iterdir()) == []
    assert ProgramCache(tmp_path / "store").loaded == 0


@pytest.mark.parametrize("damage", [b"", b"progra", b"prograM", b"program\0"])
def test_a_damaged_entry_is_removed_and_costs_a_compilation(tmp_path, damage, caplog):
    first = ProgramCache(tmp_path / "store")
    compile_into(first, "123", b"program")
    compile_into(first, "456", b"other")
    first.publish()
    (damaged,) = (tmp_path / "store").glob("123.*")
    damaged.write_bytes(damage)
    second = ProgramCache(tmp_path / "store")
    assert (second.loaded, second.damaged) == (1, 1)
    assert not damaged.exists()
    assert f"compiled program {damaged} is damaged" in caplog.text
    compile_into(second, "123", b"program")
    assert second.publish() == 1
    assert ProgramCache(tmp_path / "store").loaded == 2


def test_an_entry_that_could_not_be_loaded_is_replaced(tmp_path):
    """torch_xla removes such an entry from its folder and compiles; the store must not give it out again."""
    first = ProgramCache(tmp_path / "store")
    compile_into(first, "123", b"of another compiler")
    first.publish()
    second = ProgramCache(tmp_path / "store")
    (second.folder / "123").unlink()
    compile_into(second, "123", b"program")
    assert second.publish() == 1
    assert [path.read_bytes() for path in (tmp_path / "store").glob("123.*")] == [b"program"]


def test_a_writer_that_died_leaves_nothing_that_is_read(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / ".aside-999999999-123").write_bytes(b"half")
    (store / "notes").write_bytes(b"not ours")
    assert ProgramCache(store).loaded == 0
    assert [path.name for path in store.iterdir() if not path.is_dir()] == ["notes"]


def test_folders_of_processes_that_are_gone_are_removed(tmp_path):
    gone, alive = tmp_path / "store" / ".of-process-999999999-x", tmp_path / "store" / f".of-process-{os.getpid()}-x"
    for folder in (gone, alive):
        folder.mkdir(parents=True)
    cache = ProgramCache(tmp_path / "store")
    assert not gone.exists()
    assert alive.exists()
    folder = cache.folder
    del cache
    assert not folder.exists()


def test_what_was_not_used_for_a_month_is_removed_of_any_key(tmp_path):
    for key in ("old-key", "store"):
        cache = ProgramCache(tmp_path / key)
        for name in ("used", "unused"):
            compile_into(cache, name, b"program")
        cache.publish()
        for path in (tmp_path / key).glob("unused.*"):
            os.utime(path, (0, 0))
    assert ProgramCache(tmp_path / "store").loaded == 1
    assert [path.name.split(".")[0] for path in tmp_path.glob("*/*") if path.is_file()] == ["used", "used"]


def test_a_store_that_cannot_be_had_is_said_and_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert open_cache(tmp_path / "file" / "store") is None
    assert "compiled programs cannot be kept in" in caplog.text


def test_a_store_that_is_gone_or_full_ends_nothing(tmp_path, caplog, monkeypatch):
    cache = ProgramCache(tmp_path / "store")
    compile_into(cache, "123", b"program")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    assert cache.publish() == 0
    assert "less than 64 MiB are free" in caplog.text
    monkeypatch.undo()
    assert cache.publish() == 1  # when there is room again
    shutil.rmtree(tmp_path / "store")
    assert cache.publish() == 0
    assert caplog.text.count("could not be kept") == 2


def test_an_entry_that_another_process_replaces_meanwhile_is_passed_over(tmp_path, monkeypatch):
    cache = ProgramCache(tmp_path / "store")
    compile_into(cache, "123", b"program")
    cache.publish()
    (entry,) = (tmp_path / "store").glob("123.*")
    listed = sorted((tmp_path / "store").iterdir())
    entry.unlink()
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(listed if path.name == "store" else os.scandir(path)))
    late = ProgramCache(tmp_path / "store")
    assert (late.loaded, late.damaged) == (0, 0)


def test_the_name_of_an_entry_has_its_checksum(tmp_path):
    cache = ProgramCache(tmp_path / "store")
    compile_into(cache, "123", b"program")
    cache.publish()
    assert (tmp_path / "store" / f"123.{zlib.crc32(b'program'):08x}").read_bytes() == b"program"


def test_a_store_is_of_all_that_a_program_depends_on():
    facts = {"torch": "2.9.0", "XLA_FLAGS": ""}
    assert key_of(facts) == key_of(dict(reversed(facts.items())))
    assert key_of(facts) != key_of({**facts, "XLA_FLAGS": "--xla_backend_optimization_level=0"})


def test_where_programs_are_kept_can_be_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVSCALE_PROGRAMS", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("CONVSCALE_PROGRAMS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_root() == Path("/caches/convscale/programs")
