"""Archives: the same bytes every time, and nothing comes out of a bad one."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longlive_trt.engines.bundles.archive import pack, read_archive_manifest, unpack
from longlive_trt.engines.bundles.bundle import MANIFEST_LIMIT_BYTES, open_bundle
from longlive_trt.errors import BundleError, OutputError, UsageError
from longlive_trt.files import facts

MakeBundle = Callable[..., Path]

ROOT = Path(__file__).resolve().parents[3]
EACH_TIME = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, fake_bundle: MakeBundle) -> Path:
    return fake_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def packed(bundle: Path) -> Path:
    path = bundle.with_name("b.tar.zst")
    pack(bundle, path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def seal(payload: bytes) -> bytes:
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(payload)
    return frame + b"\x50\x2a\x4d\x18\x20\0\0\0" + hashlib.sha256(frame).digest()


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def forged(folder: Path, extra: bytes, *, leave_out: str = "") -> bytes:
    """A well-formed archive of the bundle with something more in it."""
    names = ["manifest.json", *sorted(open_bundle(folder).manifest.files)]
    entries = [entry(name, (folder / name).read_bytes()) for name in names if name != leave_out]
    return seal(b"".join(entries) + extra + bytes(1024))


def refuse(data: bytes, tmp_path: Path, reason: str) -> None:
    path, out = tmp_path / "bad.tar.zst", tmp_path / "out"
    path.write_bytes(data)
    with pytest.raises(BundleError, match=reason):
        unpack(path, out)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bad.tar.zst"]


def test_round_trip(bundle: Path, packed: Path, tmp_path: Path) -> None:
    manifest = unpack(packed, tmp_path / "deep" / "out")
    assert manifest == open_bundle(bundle).manifest
    assert contents(tmp_path / "deep" / "out") == contents(bundle)


def test_the_same_bytes_whatever_the_files_look_like(
    bundle: Path, packed: Path, tmp_path: Path, fake_bundle: MakeBundle
) -> None:
    twin = fake_bundle(tmp_path / "elsewhere")
    for path in twin.rglob("*.onnx"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    pack(twin, tmp_path / "twin.tar.zst")
    assert (tmp_path / "twin.tar.zst").read_bytes() == packed.read_bytes()


def test_the_manifest_comes_first_and_other_programs_can_read_it(packed: Path) -> None:
    with packed.open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        with tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
            assert tar.getnames()[0] == "manifest.json"
            assert len(tar.getnames()) == 5


def test_the_manifest_alone(bundle: Path, packed: Path) -> None:
    assert read_archive_manifest(packed) == open_bundle(bundle).manifest


def test_an_older_bundle_is_replaced_whole(
    packed: Path, bundle: Path, tmp_path: Path, fake_bundle: MakeBundle
) -> None:
    out = fake_bundle(tmp_path / "out", {"old.onnx": b"old"})
    unpack(packed, out)
    assert contents(out) == contents(bundle)


@EACH_TIME
@given(data=st.data())
def test_any_flipped_byte_of_an_archive_is_found(
    packed: Path, tmp_path: Path, data: st.DataObject
) -> None:
    good = packed.read_bytes()
    edges = st.integers(0, 600) | st.integers(len(good) - 60, len(good) - 1)
    position = data.draw(st.integers(0, len(good) - 1) | edges)
    flip = data.draw(st.integers(1, 255))
    bad = good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :]
    refuse(bad, tmp_path, r"bad\.tar\.zst")


@EACH_TIME
@given(data=st.data())
def test_any_flipped_byte_of_a_bundle_is_found(bundle: Path, data: st.DataObject) -> None:
    names = [name for name, content in contents(bundle).items() if content]
    path = bundle / data.draw(st.sampled_from(names))
    good = path.read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    flipped = good[position] ^ data.draw(st.integers(1, 255))
    path.write_bytes(good[:position] + bytes([flipped]) + good[position + 1 :])
    try:
        with pytest.raises(BundleError):
            open_bundle(bundle)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_cut_archive_is_found(packed: Path, tmp_path: Path, share: float) -> None:
    good = packed.read_bytes()
    refuse(good[: int(len(good) * share)], tmp_path, "cut short|empty file")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (entry("/etc/passwd", b"x"), "leads outside"),
        (entry("../../up", b"x"), "leads outside"),
        (entry("a/../../up", b"x"), "leads outside"),
        (entry("link", kind=tarfile.SYMTYPE, link="/etc/passwd"), "symbolic link"),
        (entry("link", kind=tarfile.LNKTYPE, link="step.onnx"), "hard link"),
        (entry("folder", kind=tarfile.DIRTYPE), "folder"),
        (entry("device", kind=tarfile.CHRTYPE), "device"),
        (entry("device", kind=tarfile.BLKTYPE), "device"),
        (entry("pipe", kind=tarfile.FIFOTYPE), "pipe"),
        (entry("long", b"name\0", kind=tarfile.GNUTYPE_LONGNAME), "tar type"),
        (entry("pax", b"20 path=/etc/passwd\n", kind=tarfile.XHDTYPE), "tar type"),
        (entry("more.onnx", b"x"), "not in the manifest"),
        (entry("step.onnx", b"graph" * 300), "twice"),
        (entry("manifest.json", b"{}"), "twice"),
        (b"\xff" * 512, "broken header"),
        (bytes(512) + entry("late"), "broken header"),
        (bytes(1024) + b"more", "more data"),
    ],
)
def test_what_the_manifest_does_not_list_is_refused(
    bundle: Path, tmp_path: Path, extra: bytes, reason: str
) -> None:
    refuse(forged(bundle, extra), tmp_path, reason)


def test_a_missing_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    refuse(forged(bundle, b"", leave_out="step.onnx"), tmp_path, r"step\.onnx is missing")


def test_the_manifest_has_to_come_first(bundle: Path, tmp_path: Path) -> None:
    refuse(seal(entry("step.onnx", b"x") + bytes(1024)), tmp_path, "does not begin with")


def test_files_of_other_contents_are_refused(bundle: Path, tmp_path: Path) -> None:
    other = entry("step.onnx", b"gra?h" * 300)
    refuse(forged(bundle, other, leave_out="step.onnx"), tmp_path, "altered")


def test_an_entry_larger_than_listed_is_refused_unread(bundle: Path, tmp_path: Path) -> None:
    info = tarfile.TarInfo("step.onnx")
    info.size = 1 << 40
    bomb = info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)
    refuse(forged(bundle, bomb, leave_out="step.onnx"), tmp_path, "claims 1099511627776 bytes")


def test_a_bomb_after_the_end_is_refused_unread(bundle: Path, tmp_path: Path) -> None:
    # 2 GiB of zeros in 64 KiB: reading on would take seconds and memory.
    stream = zstandard.ZstdCompressor().compressobj()
    files = [entry(name, data) for name, data in sorted(contents(bundle).items(), key=first)]
    frame = stream.compress(b"".join(files) + bytes(1024))
    frame += b"".join(stream.compress(bytes(1 << 24)) for _ in range(128)) + stream.flush()
    sealed = frame + b"\x50\x2a\x4d\x18\x20\0\0\0" + hashlib.sha256(frame).digest()
    refuse(sealed, tmp_path, "more data")


def first(item: tuple[str, bytes]) -> tuple[bool, str]:
    return item[0] != "manifest.json", item[0]


def test_a_manifest_of_absurd_size_is_refused_unread(tmp_path: Path) -> None:
    info = tarfile.TarInfo("manifest.json")
    info.size = MANIFEST_LIMIT_BYTES + 1
    refuse(seal(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)), tmp_path, "manifest claims")


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a\\b", "a\nb", "", ".", "manifest.json"],
)
def test_a_manifest_that_names_files_outside_is_refused(
    name: str, bundle: Path, tmp_path: Path
) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    values["files"] = {name: {"sha256": "0" * 64, "bytes": 0}}
    values["sha256"] = ""
    text = json.dumps(values, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    sealed = text.replace('"sha256": ""', f'"sha256": "{digest}"', 1)
    refuse(seal(entry("manifest.json", sealed.encode()) + bytes(1024)), tmp_path, "not plain")


@pytest.mark.parametrize(
    ("head", "looks"),
    [
        (b"\x1f\x8b\x08", "gzip"),
        (b"PK\x03\x04", "zip"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"BZh9", "bzip2"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (b'{"error": 1}', "JSON"),
        (b"abc", "another kind"),
        (entry("manifest.json", b"{}"), "not compressed"),
    ],
)
def test_other_formats_are_named(head: bytes, looks: str, tmp_path: Path) -> None:
    refuse(head + bytes(600), tmp_path, looks)


@pytest.mark.parametrize("place", ["file", "full folder", "inside", "folder for a file"])
def test_what_is_in_the_way_stays(place: str, bundle: Path, packed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    if place == "file":
        other.write_text("mine")
    else:
        other.mkdir()
        (other / "mine.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"way|not a bundle|inside"):
        if place == "inside":
            pack(bundle, bundle / "b.tar.zst")
        elif place == "folder for a file":
            pack(bundle, other)
        else:
            unpack(packed, other)
    assert contents(tmp_path) == before


def test_packing_checks_what_it_packs(bundle: Path, tmp_path: Path) -> None:
    good = (bundle / "step.onnx").read_bytes()
    for bad in (good[:-1], good + b"x", b"x" + good[1:], None):
        (bundle / "step.onnx").unlink()
        if bad is not None:
            (bundle / "step.onnx").write_bytes(bad)
        try:
            with pytest.raises(BundleError, match=r"step\.onnx"):
                pack(bundle, tmp_path / "x.tar.zst")
        finally:
            (bundle / "step.onnx").write_bytes(good)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_anything_is_written(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "free_bytes", lambda _path: 1000)
    with pytest.raises(OutputError, match=r"0\.2 MB are needed and 1\.0 kB are free"):
        unpack(packed, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from longlive_trt.engines.bundles.archive import pack, unpack
def stop(what, done, total):
    if 0 < done < total:
        print("in the middle", flush=True)
        time.sleep(60)
{"pack": pack, "unpack": unpack}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), stop)
"""


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_a_killed_run_leaves_nothing_that_looks_done(
    command: str, bundle: Path, packed: Path, tmp_path: Path
) -> None:
    source, run = (bundle, pack) if command == "pack" else (packed, unpack)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, command, str(source), str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"in the middle\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    process.stdout.close()
    leftovers = list(tmp_path.iterdir())
    assert leftovers and all(path.name.startswith(".out.") for path in leftovers)
    run(source, out)  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if command == "unpack":
        assert contents(out) == contents(bundle)
    else:
        assert out.read_bytes() == packed.read_bytes()
