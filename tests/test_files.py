"""Files and folders that appear whole or not at all."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from longlive_trt import files
from longlive_trt.errors import UsageError
from longlive_trt.files import publish_directory, publish_file, sha256_file


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def finished_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("size", [0, 1, 4 << 20, (4 << 20) + 1])
def test_hashes(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")
    with publish_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.parent == path.parent
    assert (path.read_text(), names(tmp_path)) == ("new", {"state"})


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "state"
    path.write_text("old")
    with pytest.raises(error), publish_file(path) as partial:
        partial.write_text("half")
        raise error
    assert (path.read_text(), names(tmp_path)) == ("old", {"state"})


def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldKernel:
        @staticmethod
        def renameat2(*_: object) -> int:
            return -1

    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_args, **_options: OldKernel)


@pytest.mark.parametrize("prepare", [lambda _: None, no_exchange], ids=["exchange", "without"])
def test_a_folder_takes_the_place_of_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[pytest.MonkeyPatch], None]
) -> None:
    prepare(monkeypatch)
    path = tmp_path / "deep" / "bundle"
    for text in ("first", "second"):
        with publish_directory(path) as partial:
            (partial / text).write_text(text)
            assert (text == "first") != path.exists()
        assert names(path) == {text}
    assert names(path.parent) == {"bundle"}


def test_the_old_folder_is_whole_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What replaces a folder is one system call, not a removal and a rename."""
    path = tmp_path / "bundle"
    with publish_directory(path) as partial:
        (partial / "a").write_text("")
    seen = []
    replace, rmtree = Path.replace, files.shutil.rmtree

    def watch(call: Callable[..., object]) -> Callable[..., object]:
        def watched(*arguments: object, **options: object) -> object:
            seen.append(names(path))
            result = call(*arguments, **options)
            seen.append(names(path))
            return result

        return watched

    monkeypatch.setattr(Path, "replace", watch(replace))
    monkeypatch.setattr(files.shutil, "rmtree", watch(rmtree))
    with publish_directory(path) as partial:
        (partial / "a").write_text("")
        (partial / "b").write_text("")
    assert seen and all(found in ({"a"}, {"a", "b"}) for found in seen)
    assert names(path) == {"a", "b"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "bundle"
    with pytest.raises(error), publish_directory(path) as partial:
        (partial / "half").write_text("")
        raise error
    assert names(tmp_path) == set()
    with publish_directory(path) as partial:
        (partial / "whole").write_text("")
    with pytest.raises(error), publish_directory(path) as partial:
        (partial / "half").write_text("")
        raise error
    assert (names(tmp_path), names(path)) == ({"bundle"}, {"whole"})


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    dead, alive = finished_pid(), os.getppid()
    for owner in (dead, alive):
        (tmp_path / f".bundle.{owner}.partial").mkdir()
        (tmp_path / f".bundle.{owner}.partial" / "weights").write_text("")
    (tmp_path / f".other.{dead}.partial").write_text("")
    with publish_directory(tmp_path / "bundle"):
        pass
    kept = {f".bundle.{alive}.partial", f".other.{dead}.partial", "bundle"}
    assert names(tmp_path) == kept


def test_a_killed_run_of_the_same_process_number_is_no_obstacle(tmp_path: Path) -> None:
    """In a container every run may have the same one."""
    leftover = tmp_path / f".bundle.{os.getpid()}.partial"
    leftover.mkdir()
    (leftover / "half").write_text("")
    with publish_directory(tmp_path / "bundle") as partial:
        (partial / "whole").write_text("")
    assert (names(tmp_path), names(tmp_path / "bundle")) == ({"bundle"}, {"whole"})


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "bundle").symlink_to(tmp_path / "disk" / "real")
    for text in ("first", "second"):
        with publish_directory(tmp_path / "bundle") as partial:
            (partial / text).write_text("")
        assert (tmp_path / "bundle").is_symlink()
        assert names(tmp_path / "disk" / "real") == {text}
    assert names(tmp_path) == {"disk", "bundle"}
    assert names(tmp_path / "disk") == {"real"}


def test_the_current_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for path in (Path(), tmp_path / "a" / "b", Path("..")):
        with pytest.raises(UsageError, match="folder you are in"), publish_directory(path):
            pass
    assert names(tmp_path / "a") == {"b"}


def test_odd_names(tmp_path: Path) -> None:
    for name in ("a.b.c", "[x]", "*", "with space", "-"):
        with publish_directory(tmp_path / name) as partial:
            (partial / "f").write_text("")
        with publish_file(tmp_path / f"{name}.file") as partial:
            partial.write_text("")
    assert len(names(tmp_path)) == 10
