"""The store of compiled programs: what it takes in, what it gives out, and what damage costs."""

import os
import zlib
from pathlib import Path

import pytest

from trainables.runtime.program_cache import ProgramCache, cache_root, key_of


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


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
    assert [path.read_bytes() for path in (tmp_path / "store").iterdir()] == [b"program"]


def test_a_writer_that_died_leaves_nothing_that_is_read(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / ".aside-1-123").write_bytes(b"half")
    (store / "notes").write_bytes(b"not ours")
    assert ProgramCache(store).loaded == 0
    assert (store / "notes").exists()


def test_folders_of_processes_that_are_gone_are_removed(tmp_path):
    gone = tmp_path / "temporary" / "convscale-programs-999999999-x"
    gone.mkdir()
    alive = tmp_path / "temporary" / f"convscale-programs-{os.getpid()}-x"
    alive.mkdir()
    cache = ProgramCache(tmp_path / "store")
    assert not gone.exists()
    assert alive.exists()
    folder = cache.folder
    del cache
    assert not folder.exists()


def test_the_name_of_an_entry_has_its_checksum(tmp_path):
    cache = ProgramCache(tmp_path / "store")
    compile_into(cache, "123", b"program")
    cache.publish()
    assert [path.name for path in (tmp_path / "store").iterdir()] == [f"123.{zlib.crc32(b'program'):08x}"]


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
