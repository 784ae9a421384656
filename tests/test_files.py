"""Files and folders that appear whole or not at all."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from longlive_trt.errors import UsageError
from longlive_trt.files import (
    Claim,
    Ours,
    Ownership,
    discard_abandoned,
    partials,
    publish_file,
    publishing,
    sha256_file,
)
from longlive_trt.files import publish_directory as publish_kind

ROOT = Path(__file__).resolve().parents[1]
ANYTHING = Ours(
    "a test's folder",
    lambda folder: frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*")),
)


def publish_directory(path: Path) -> AbstractContextManager[Path]:
    return publish_kind(path, ANYTHING)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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

    monkeypatch.setattr(publishing.ctypes, "CDLL", lambda *_args, **_options: OldKernel)


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
    replace, rmtree = Path.replace, publishing.shutil.rmtree

    def watch(call: Callable[..., object]) -> Callable[..., object]:
        def watched(*arguments: object, **options: object) -> object:
            seen.append(names(path))
            result = call(*arguments, **options)
            seen.append(names(path))
            return result

        return watched

    monkeypatch.setattr(Path, "replace", watch(replace))
    monkeypatch.setattr(publishing.shutil, "rmtree", watch(rmtree))
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


PUBLISHING = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from longlive_trt.files import Claim, Ours, publish_directory, publish_file, scratch_folder
with ExitStack() as stack:
    folder, out = Path(sys.argv[1]), Path(sys.argv[1]) / "bundle"
    stack.enter_context(publish_directory(out, Ours("a bundle", lambda _: None))).joinpath(
        "half").write_text("")
    stack.enter_context(publish_file(folder / "video.mp4")).write_text("half")
    stack.enter_context(scratch_folder(folder / "export"))
    Claim(folder / "video.mp4")
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    time.sleep(60)
"""


@pytest.fixture
def other_run(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is in the middle of publishing to this folder."""
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISHING, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_what_a_killed_run_left_is_removed_and_what_a_live_one_makes_is_not(
    tmp_path: Path, other_run: "subprocess.Popen[bytes]"
) -> None:
    (tmp_path / ".hidden.lock").write_text("of somebody else")
    (tmp_path / f".mine.{'0' * 16}.lock").write_text("of somebody else")
    foreign = {".hidden.lock", f".mine.{'0' * 16}.lock"}
    theirs = names(tmp_path) - foreign
    assert len(theirs) == 7
    for _ in range(2):
        with publish_directory(tmp_path / "bundle"):
            pass
        assert names(tmp_path) == theirs | foreign | {"bundle"}
    other_run.kill()
    other_run.wait()
    with publish_file(tmp_path / "another") as partial:
        partial.write_text("")
    assert names(tmp_path) == {"bundle", "another"} | foreign


def test_process_numbers_decide_nothing(
    tmp_path: Path, other_run: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """In containers every run may have the same one, and none sees that of another."""
    theirs = names(tmp_path)
    monkeypatch.setattr(os, "getpid", lambda: other_run.pid)
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(ProcessLookupError))
    with publish_directory(tmp_path / "bundle"):
        pass
    assert names(tmp_path) == theirs | {"bundle"}


def test_a_lock_from_another_machine_is_trusted_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock may not reach here."""
    ownership = Ownership(tmp_path / "bundle")
    ownership.name().mkdir()
    (ownership.name() / "half").write_text("")
    os.close(ownership._file)
    theirs = names(tmp_path)
    monkeypatch.setattr(partials, "_this_machine", lambda: b"another")
    discard_abandoned(tmp_path)
    assert names(tmp_path) == theirs
    now = time.time()
    monkeypatch.setattr(partials.time, "time", lambda: now + 25 * 3600)
    discard_abandoned(tmp_path)
    assert names(tmp_path) == set()


def test_an_old_folder_that_was_put_aside_comes_back(tmp_path: Path) -> None:
    """Where a kill came between the two renames of a file system without exchange."""
    ownership = Ownership(tmp_path / "bundle")
    for ending in ("old", "partial"):
        ownership.name(ending).mkdir()
        (ownership.name(ending) / ending).write_text("")
    os.close(ownership._file)
    discard_abandoned(tmp_path)
    assert (names(tmp_path), names(tmp_path / "bundle")) == ({"bundle"}, {"old"})


def test_one_run_at_a_time_claims_a_target(tmp_path: Path) -> None:
    first = Claim(tmp_path / "video.mp4")
    with pytest.raises(UsageError, match=r"video\.mp4: another run is writing it"):
        Claim(tmp_path / "video.mp4")
    Claim(tmp_path / "another.mp4").release()
    first.release()
    Claim(tmp_path / "video.mp4").release()
    assert names(tmp_path) == set()


def test_long_names_have_partials_of_their_own(tmp_path: Path) -> None:
    targets = [tmp_path / ("x" * 240 + letter) for letter in "ab"]
    claims = [Claim(target) for target in targets]
    for target in targets:
        with publish_file(target) as partial:
            partial.write_text(target.name[-1])
    assert [target.read_text() for target in targets] == ["a", "b"]
    for claim in claims:
        claim.release()
    assert names(tmp_path) == {target.name for target in targets}


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
