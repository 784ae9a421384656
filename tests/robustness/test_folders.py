"""A folder is replaced only where it is ours and holds nothing else, whatever would replace it."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from longlive_trt.engines.bundles.archive import pack
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.bundles.transfer import push
from longlive_trt.files import Ownership
from tests.robustness.support.pairs import each_with_each
from tests.robustness.support.places import MakeBundle, run, snapshot, write

Place = Callable[[Path, "Sources"], None]


@dataclass(frozen=True)
class Sources:
    """What the commands read, and samples of what they make."""

    bundle: Path
    archive: Path
    store: Path
    export: Path

    @property
    def commands(self) -> dict[str, tuple[object, ...]]:
        weights = ("--config", "tiny", "--random-weights", 1)
        return {
            "unpack": ("unpack", self.archive),
            "pull": ("pull", self.store),
            "build": ("build", "--onnx", self.export),
            "build --force": ("build", "--force", "--onnx", self.export, "--precision", "fp16"),
            "export": ("export", *weights),
            "calibrate": ("calibrate", "--precision", "fp8", "--onnx", self.export),
            "calibrate a checkpoint": ("calibrate", "--precision", "int8", *weights),
        }


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory,
    fake_bundle: MakeBundle,
    mini_bundle: Callable[[str], Path],
) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    bundle = fake_bundle(folder / "bundle")
    pack(bundle, folder / "b.tar.zst")
    push(bundle, str(folder / "store"))
    export = mini_bundle("relative").with_name("mini-relative-export")
    return Sources(bundle, folder / "b.tar.zst", folder / "store", export)


def bundle_and(*names: str) -> Place:
    def make(out: Path, sources: Sources) -> None:
        shutil.copytree(sources.bundle, out)
        for name in names:
            write(out / name)

    return make


def export_and(*names: str) -> Place:
    def make(out: Path, sources: Sources) -> None:
        shutil.copytree(sources.export, out)
        for name in names:
            write(out / name)

    return make


def files(**texts: str) -> Place:
    def make(out: Path, _: Sources) -> None:
        for name, text in texts.items():
            write(out / name.replace("__", "."), text)

    return make


def an_empty_folder_in_a_bundle(out: Path, sources: Sources) -> None:
    shutil.copytree(sources.bundle, out)
    (out / "ideas").mkdir()


def a_link_in_a_bundle(out: Path, sources: Sources) -> None:
    shutil.copytree(sources.bundle, out)
    (out / "videos").symlink_to(out.parent)


def an_altered_manifest(out: Path, sources: Sources) -> None:
    shutil.copytree(sources.bundle, out)
    path = out / "manifest.json"
    path.write_text(path.read_text().replace("mini-relative", "mini-altered", 1))


def a_manifest_that_is_a_link(out: Path, sources: Sources) -> None:
    out.mkdir()
    (out / "manifest.json").symlink_to(sources.bundle / "manifest.json")
    write(out / "step.onnx")


def a_file(out: Path, _: Sources) -> None:
    write(out)


def a_pipe(out: Path, _: Sources) -> None:
    os.mkfifo(out)


def a_loop(out: Path, _: Sources) -> None:
    out.symlink_to(out)


WEB_APP = json.dumps({"name": "app", "icons": [], "files": {}, "format": 1})
RECORD = {"format": 1, "precision": "fp32", "config": {}, "graphs": {}, "checkpoints": {}}
PLACES: dict[str, tuple[Place, str]] = {
    "notes": (files(notes__txt="mine"), "notes.txt"),
    "a web app's manifest": (files(manifest__json=WEB_APP, index__html="<p>"), "index.html"),
    "a manifest alone": (files(manifest__json=WEB_APP), "manifest.json"),
    "no JSON": (files(manifest__json="mine", export__json="mine"), "export.json"),
    "deep JSON": (files(manifest__json="[" * 99999, export__json="[" * 99999), "export.json"),
    "an export of another program": (files(export__json='{"files": {}}', a="1"), "holds a"),
    "a record that is nearly one": (files(export__json=json.dumps(RECORD), a="1"), "holds a"),
    "a bundle with a video": (bundle_and("video.mp4"), "video.mp4"),
    "a bundle with a hidden file": (bundle_and(".git/config"), ".git/config"),
    "a bundle with a deep file": (bundle_and("kernels/mine/x"), "kernels/mine/x"),
    "a bundle with a name like ours": (bundle_and("step.weights.bak"), "step.weights.bak"),
    "a bundle with an empty folder": (an_empty_folder_in_a_bundle, "ideas/"),
    "a bundle with a link": (a_link_in_a_bundle, "videos"),
    "an export with a thesis": (export_and("thesis.tex"), "thesis.tex"),
    "an altered manifest": (an_altered_manifest, "not a"),
    "a manifest that is a link": (a_manifest_that_is_a_link, "manifest.json"),
    "a file": (a_file, "in the way"),
    "a pipe": (a_pipe, "in the way"),
    "a loop of links": (a_loop, "leads to itself"),
}
COMMANDS = (
    *("unpack", "pull", "build", "build --force"),
    *("export", "calibrate", "calibrate a checkpoint"),
)


@each_with_each("command, place", COMMANDS, PLACES)
def test_a_place_of_somebody_stays_as_it_is(
    command: str,
    place: str,
    sources: Sources,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, words = PLACES[place]
    made = "an export" if command.startswith(("export", "calibrate")) else "a bundle"
    is_of_the_other_kind = place.startswith(("a bundle with", "an export with"))
    if is_of_the_other_kind and not place.startswith(made):
        words = f"not {made}"
    make(tmp_path / "out", sources)
    before = snapshot(tmp_path)
    assert run(*sources.commands[command], "--out", tmp_path / "out") in (1, 2)
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith(f"error: {tmp_path / 'out'}: ")
    assert words in complaint
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_goes_into_a_bundle_an_export_or_the_systems_folders(
    command: str,
    sources: Sources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(sources.bundle, tmp_path / "bundle")
    shutil.copytree(sources.export, tmp_path / "export")
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    for out in ("bundle/new", "bundle/a/b/c", "export/new", "link/new", "/dev/new", "/proc/x", "-"):
        assert run(*sources.commands[command], "--out", out) == 2
        assert f"error: {out}: " in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    assert not Path("/dev/new").exists()


def test_a_mounted_disk_is_refused_before_any_work(
    sources: Sources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An empty one too: it could not be given to another folder, which would be known last."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    for command in sources.commands.values():
        assert run(*command, "--out", tmp_path / "out") == 2
        assert "a disk is mounted there" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_folder_that_cannot_be_looked_into_stays(sources: Sources, tmp_path: Path) -> None:
    shutil.copytree(sources.bundle, tmp_path / "out")
    write(tmp_path / "out" / "closed" / "diary.txt")
    (tmp_path / "out" / "closed").chmod(0)
    assert run(*sources.commands["unpack"], "--out", tmp_path / "out") == 1
    (tmp_path / "out" / "closed").chmod(0o700)
    assert (tmp_path / "out" / "closed" / "diary.txt").exists()


def test_a_bundle_of_ours_and_what_a_link_leads_to_are_replaced(
    sources: Sources, fake_bundle: MakeBundle, tmp_path: Path
) -> None:
    for command in ("unpack", "pull"):
        real = fake_bundle(tmp_path / command / "disk", {"old/a.onnx": b"old"})
        link = tmp_path / command / "link"
        link.symlink_to(real)
        assert run(*sources.commands[command], "--out", link) == 0
        assert link.is_symlink()
        assert snapshot(real) == snapshot(sources.bundle)
        assert sorted(path.name for path in real.parent.iterdir()) == ["disk", "link"]


def test_what_comes_into_a_bundle_while_it_is_built_again_is_kept(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longlive_trt.engines import build

    out, check = tmp_path / "out", build.require_complete
    assert run(*sources.commands["build"], "--out", out) == 0

    def put_a_video_there(bundle: object) -> None:
        write(out / "video.mp4")
        check(bundle)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "require_complete", put_a_video_there)
    assert run(*sources.commands["build --force"], "--out", out) == 0
    assert open_bundle(out).manifest.precision == "fp16"
    assert (tmp_path / "out-replaced" / "video.mp4").read_text() == "mine"
    assert not (out / "video.mp4").exists()


@pytest.mark.parametrize("command", ["build", "pull"])
def test_what_a_killed_run_left_goes_also_where_nothing_is_to_do(
    command: str, sources: Sources, tmp_path: Path
) -> None:
    for _ in range(2):
        assert run(*sources.commands[command], "--out", tmp_path / "out") == 0
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        left = Ownership(tmp_path / "out")
        shutil.copytree(tmp_path / "out", left.name())
        os.close(left._file)
        write(tmp_path / "..out.pull.claim", "longlive-trt")
    assert run(*sources.commands[command], "--out", tmp_path / "out") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_builders_of_one_bundle(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins and ends while the first is at work; both leave a whole bundle."""
    from longlive_trt.engines.ort import cpu

    out, build_graph = tmp_path / "out", cpu.build_graph
    calls: list[str] = []

    def with_another_builder(source: Path, *arguments: object) -> None:
        build_graph(source, *arguments)  # type: ignore[arg-type]
        calls.append(source.stem)
        if len(calls) == 1:
            assert run(*sources.commands["build"], "--out", out) == 0
            assert run("verify", out) == 0

    monkeypatch.setattr(cpu, "build_graph", with_another_builder)
    assert run(*sources.commands["build"], "--out", out) == 0
    assert len(calls) == 4
    assert run("verify", out) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_builder_whose_partial_folder_is_taken_away_publishes_nothing(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longlive_trt.engines.ort import cpu

    out, build_graph = tmp_path / "out", cpu.build_graph

    def robbed(source: Path, folder: Path, *arguments: object) -> None:
        build_graph(source, folder, *arguments)  # type: ignore[arg-type]
        for path in folder.glob("step.weights"):
            path.unlink()

    monkeypatch.setattr(cpu, "build_graph", robbed)
    assert run(*sources.commands["build"], "--out", out) == 1
    assert list(tmp_path.iterdir()) == []
