"""The public Python API: its names, the functions that make bundles, its page, its examples."""

import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import longlive_trt as ll
from longlive_trt.cli import LazyGroup
from longlive_trt.errors import LongLiveError, UsageError
from tests.videos import SIZE, Array, make

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    *("BuildResult", "CalibrationResult", "ExportResult", "LongLiveError", "Pipeline", "Video"),
    *("VideoBlock", "VideoCheckpoint", "__version__", "build", "calibrate", "errors", "export"),
    "load",
]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- names -----------------------------------------------------------------------------------


def test_the_names_are_these() -> None:
    assert sorted(ll.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(ll))
    for name in NAMES:
        assert getattr(ll, name) is not None
    assert ll.errors.LongLiveError is ll.LongLiveError is LongLiveError
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ll.nothing  # type: ignore[attr-defined]


def loaded_by(source: str) -> set[str]:
    told = f"import sys\n{source}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", told]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split())


def test_importing_the_package_loads_nothing_else() -> None:
    added = loaded_by("import longlive_trt") - loaded_by("")
    assert added == {"longlive_trt"}


def test_making_videos_loads_no_torch() -> None:
    loaded = loaded_by("import longlive_trt as ll; ll.load, ll.Video")
    assert "numpy" in loaded and not loaded & {"torch", "tensorrt", "click"}


def test_export_is_an_area_and_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    from longlive_trt.making import exporting

    # In whatever order the two are imported.
    assert inspect.ismodule(ll.export) and callable(ll.export)
    asked: list[Any] = []
    monkeypatch.setattr(exporting, "write_export", lambda *a, **o: asked.append((a, o)))
    ll.export("tiny", "onnx", random_weights=3, precision="fp16", check=False)
    ((config, sources, out, precision), options) = asked[0]
    assert (config.name, sources.random_seed, out) == ("tiny", 3, Path("onnx"))
    assert (precision.name, options["check"]) == ("fp16", False)


@dataclass(frozen=True)
class Opened:
    folder: Path
    config: object = None


def test_calibrate_hands_on_what_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from longlive_trt.making import calibrating

    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def noting(name: str) -> Callable[..., str]:
        return lambda *a, **o: calls.setdefault(name, (a, o)) and name

    monkeypatch.setattr(calibrating, "describe_calibration", lambda *_, **__: "about an hour")
    told: list[str] = []
    made = ("measure_sensitivity", "calibrate_export", "write_quantized")
    for name in ("require_extras", "begin_tracing", *made):
        monkeypatch.setattr(calibrating, name, noting(name))
    monkeypatch.setattr(calibrating.SourceExport, "open", lambda folder: Opened(folder))
    options = {"seed": 7, "blocks": 3, "include": ["*.q"], "prompts": ["a", "b", "c"]}
    extras = {"cache": "fp8", "vae_precision": "int8", "vae_exclude": ["conv2"]}
    result = ll.calibrate(
        *("export", "out"), precision="int8", smoothquant=True, max_prompts=2, check=False,
        report=True, error_budget=0.5, notify=told.append, **options, **extras,
    )  # fmt: skip
    (source, request, out, *_), with_vae = calls["calibrate_export"]
    assert (source, out, with_vae) == (Opened(Path("export")), Path("out"), {"with_vae": True})
    assert told == ["about an hour"]
    assert (request.recipe.name, request.prompts) == ("int8-smoothquant", ("a", "b"))
    assert (request.seed, request.blocks, request.selection.include) == (7, 3, ("*.q",))
    assert calls["measure_sensitivity"][0][3] == 0.5
    written = calls["write_quantized"][1]
    assert calls["begin_tracing"][0] == (written["tracers"], source, request, written["extras"])
    assert (written["check"], written["sensitivity"]) == (False, "measure_sensitivity")
    assert written["extras"].cache.name == "fp8" and written["extras"].vae_exclude == ("conv2",)
    assert (result.export, result.calibration) == ("write_quantized", "calibrate_export")


def test_a_missing_package_comes_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise ModuleNotFoundError("No module named 'modelopt'", name="modelopt.torch")

    monkeypatch.delitem(vars(ll), "calibrate", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", missing)
        with pytest.raises(ModuleNotFoundError) as caught:
            _ = ll.calibrate
    (note,) = caught.value.__notes__
    assert "modelopt, which is not installed: pip install" in note


OWN_NAMES = {
    "onnx_folder": "onnx",
    "wants_report": "report",
    "no_check": "check",
    "no_encoder": "encoder",
}
"""Where a command's parameter is called otherwise than the function's."""
OF_WORDS = {"is_quiet", "as_json"}
"""What only a command has: how it speaks."""


@pytest.mark.parametrize("name", ["export", "calibrate", "build"])
def test_functions_have_the_options_and_defaults_of_their_commands(name: str) -> None:
    from longlive_trt.making.exporting import export

    function = export if name == "export" else getattr(ll, name)
    parameters = dict(inspect.signature(function).parameters)
    command = LazyGroup().get_command(click.Context(LazyGroup()), name)
    assert command is not None
    needed = {"--config": "c", "--onnx": "o", "--out": "b", "--precision": "fp8"}
    given = [part for option in command.params for part in asked(option, needed)]
    values = command.make_context(name, given).params
    for option in command.params:
        assert option.name is not None
        if option.name in OF_WORDS:
            continue
        parameter = parameters.pop(OWN_NAMES.get(option.name, option.name))
        if option.required:
            assert parameter.default in (parameter.empty, None)
        elif option.name in ("no_check", "no_encoder"):
            assert (parameter.default, values[option.name]) == (True, False)
        else:
            assert parameter.default == values[option.name], option.name
    assert parameters.keys() - {"command"} <= {"progress", "checking", "notify"}


def asked(option: click.Parameter, needed: dict[str, str]) -> list[str]:
    return [option.opts[0], needed[option.opts[0]]] if option.required else []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp4"}, "precision is 'fp4'; allowed: fp32, fp16, bf16, fp8, int8"),
        ({"engine": "x"}, "engine is 'x'; allowed: onnxruntime"),
        ({"batch": 0}, "batch is 0; allowed: 1 or more"),
        ({"optimization_level": 6}, "optimization_level is 6; allowed: 0 to 5"),
        ({"attention": "x"}, "attention is 'x'; allowed: standard, plugin"),
        ({"compute": "fp8", "precision": "fp8"}, "compute is 'fp8'; allowed: fp32"),
        ({"hardware_compatibility": "x"}, "hardware_compatibility is 'x'"),
        ({}, "nowhere: no such folder"),
    ],
)
def test_build_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        ll.build("nowhere", "bundle", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp16"}, "precision is 'fp16'; allowed: fp8, int8"),
        ({"cache": "x"}, "cache is 'x'; allowed: fp8, int8"),
        ({"attention": "x"}, "attention is 'x'; allowed: fp8, int8"),
        ({"vae_precision": "x"}, "vae_precision is 'x'"),
        ({"compute": "x"}, "compute is 'x'"),
        ({"max_prompts": 0}, "max_prompts is 0"),
        ({"error_budget": 0}, "error_budget is 0"),
        ({"prompts": []}, "no prompts to calibrate with"),
        ({"config": "tiny"}, "give --onnx, or --config and checkpoints, and not both"),
        ({}, "nowhere: no such folder"),
    ],
)
def test_calibrate_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        ll.calibrate("nowhere", "out", **{"precision": "fp8", **options})


def test_a_build_is_what_the_command_builds(mini_bundle: Callable[[str], Path]) -> None:
    bundle = mini_bundle("relative")
    told: list[str] = []
    result = ll.build(
        bundle.with_name("mini-relative-export"),
        "bundle",
        progress=lambda what, _done, _total: told.append(what),
    )
    assert result.manifest.key == ll.load(bundle).bundle.manifest.key
    assert result.manifest.command == "longlive_trt.build"
    assert told == ["building step", "building prompt"]
    assert ll.load("bundle").config.name == "mini-relative"


# ---- opening ---------------------------------------------------------------------------------


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^nowhere/: no such bundle: .*`longlive-trt build`"):
        ll.load("nowhere/")
    with pytest.raises(UsageError, match=r"no manifest\.json inside"):
        ll.load(tmp_path)
    with pytest.raises(UsageError, match="device is 'tpu'; allowed: auto, cpu, cuda"):
        ll.load(tmp_path, device="tpu")  # type: ignore[arg-type]


# ---- the page and the examples ---------------------------------------------------------------


def blocks_of_the_page() -> list[str]:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def is_about_making(block: str) -> bool:
    return "ll.export(" in block


MAKING = [block for block in blocks_of_the_page() if is_about_making(block)]
SHOWING = [block for block in blocks_of_the_page() if not is_about_making(block)]


def test_the_page_has_blocks() -> None:
    assert len(SHOWING) >= 7 and len(MAKING) == 1


@pytest.mark.parametrize("block", SHOWING)
def test_a_block_of_the_page_runs(
    block: str, video_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bundle").symlink_to(video_bundle, target_is_directory=True)
    shown: list[Array] = []
    exec(compile(block, "docs/python.md", "exec"), {"show": shown.append})  # noqa: S102
    if "show(" in block:
        assert len(shown) == 14 and shown[0].shape == (9, *SIZE, 3)
    if "writer" in block:
        assert Path("car.mp4").stat().st_size > 0
    printed = capsys.readouterr().out.splitlines()
    for result, comment in re.findall(r"print\((.*)\)\s+# (.*)$", block, re.MULTILINE):
        assert printed[-1].startswith(comment.removesuffix("...")), result


@pytest.mark.exhaustive
@pytest.mark.parametrize("block", MAKING)
def test_a_bundle_is_made_as_the_page_says(block: str) -> None:
    exec(compile(block, "docs/python.md", "exec"), {})  # noqa: S102
    assert ll.load("new-bundle").config.name == "tiny"


def run_example(name: str, *arguments: object) -> None:
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


def test_the_example_that_makes_a_video(video_bundle: Path) -> None:
    import av

    run_example("make_video", video_bundle, "a red car at dusk", "car.mp4", "--seconds", 1)
    with av.open("car.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 21


def test_the_example_that_steers(video_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("steer", video_bundle, "frames.npy", "a car", "in the rain", "--blocks", 2)
    with ll.load(video_bundle) as pipeline:
        _, expected = make(pipeline, {0: "a car", 6: "in the rain"}, frames=12)
    assert np.array_equal(np.load("frames.npy"), expected)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        *("frame 0: a car", "frame 9: a car"),
        *("frame 21: in the rain", "frame 33: in the rain"),
    ]


def test_the_example_with_two_endings(video_bundle: Path) -> None:
    prompts = ("a road", "in the rain", "in the snow")
    run_example("two_endings", video_bundle, "out", *prompts, "--seconds", 1)
    assert {path.name for path in Path("out").iterdir()} == {
        "beginning.mp4",
        "state",
        "endings.npy",
    }
    with ll.load(video_bundle) as pipeline:
        _, rain = make(pipeline, {0: "a road", 6: "in the rain"}, frames=12)
    found = np.load("out/endings.npy")
    assert found.shape == (24, SIZE[0], 2 * SIZE[1], 3)
    assert np.array_equal(found[:, :, : SIZE[1]], rain[21:])


def test_every_example_is_tested() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    # The client's has a server to talk to in tests/serving.
    assert names == {"live_client", "make_video", "steer", "two_endings"}
