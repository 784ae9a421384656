"""The public Python API: its names, what it makes and refuses, its page, and its examples."""

import importlib.util
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import longlive_trt as ll
from longlive_trt.cli import LazyGroup, main
from longlive_trt.engines.loader import load_engine
from longlive_trt.errors import EngineError, LongLiveError, UsageError
from longlive_trt.runtime import assembly
from longlive_trt.runtime.state import load_state

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    *("BuildResult", "CalibrationResult", "ExportResult", "LongLiveError", "Pipeline", "Video"),
    *("VideoBlock", "VideoCheckpoint", "__version__", "build", "calibrate", "errors", "export"),
    "load",
]
SIZE = (32, 48)
FIRST_FRAMES, FRAMES = 9, 12

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pipeline(video_bundle: Path) -> Iterator[ll.Pipeline]:
    with pytest.MonkeyPatch.context() as patch:

        def load_on_one_thread(*arguments: Any, **options: Any) -> Any:
            return load_engine(*arguments, **{"threads": 1, **options})

        # A model as small as this is slower on more threads than on one.
        patch.setattr(assembly, "load_engine", load_on_one_thread)
        with ll.load(video_bundle) as pipeline:
            yield pipeline


def latents(blocks: Sequence[ll.VideoBlock]) -> Array:
    return np.concatenate([block.latents for block in blocks], axis=1)


def frames(blocks: Sequence[ll.VideoBlock]) -> Array:
    return np.concatenate([block.frames for block in blocks])


def make(pipeline: ll.Pipeline, *arguments: Any, **options: Any) -> tuple[Array, Array]:
    with pipeline.video(*arguments, **options) as video:
        blocks = list(video)
        return latents(blocks), frames(blocks)


def same(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    return all(map(np.array_equal, one, other))


def generate(bundle: Path, *arguments: object) -> tuple[Array, Array]:
    """What the command makes."""
    outputs = ("--latents-out", "latents", "--out", "frames/", "--overwrite", "--quiet")
    assert main([str(part) for part in ("generate", "--bundle", bundle, *arguments, *outputs)]) == 0
    pictures = [np.asarray(Image.open(path)) for path in sorted(Path("frames").glob("*.png"))]
    return load_file("latents")["latents"], np.stack(pictures)


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
}
"""Where a command's parameter is called otherwise than the function's."""


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
        parameter = parameters.pop(OWN_NAMES.get(option.name, option.name))
        if option.required:
            assert parameter.default in (parameter.empty, None)
        elif option.name == "no_check":
            assert (parameter.default, values[option.name]) == (True, False)
        else:
            assert parameter.default == values[option.name], option.name
    assert parameters.keys() - {"command"} == {"progress"}


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
        ({"attention": "int8"}, "attention is 'int8'; allowed: fp8"),
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
    for name in ("demo", "nowhere/"):
        with pytest.raises(UsageError, match=rf"^{name}: no such bundle: .*longlive-trt build"):
            ll.load(name)
    with pytest.raises(UsageError, match=r"no manifest\.json inside"):
        ll.load(tmp_path)
    with pytest.raises(UsageError, match="device is 'tpu'; allowed: auto, cpu, cuda"):
        ll.load(tmp_path, device="tpu")  # type: ignore[arg-type]


# ---- videos ----------------------------------------------------------------------------------


def test_a_video_is_made_block_by_block(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat", seed=1, seconds=2) as video:
        assert (video.fps, video.size) == (16, SIZE)
        blocks = list(video)
    assert [block.index for block in blocks] == [0, 1, 2]
    assert [block.first_frame for block in blocks] == [0, 9, 21]
    for block in blocks:
        count = FRAMES if block.index else FIRST_FRAMES
        assert block.frames.shape == (count, *SIZE, 3) and block.frames.dtype == np.uint8
        assert block.frame_count == count and block.prompt == "a cat"
        assert block.latents.shape == (1, 3, 16, 4, 6) and block.latents.dtype == np.float32
    assert np.std(frames(blocks)) > 5


def test_it_is_the_video_of_the_command(pipeline: ll.Pipeline, video_bundle: Path) -> None:
    arguments = ("--prompt", "a cat", "--prompt-at", 6, "a dog", "--seed", 3, "--frames", 12)
    for mode in ("exact", "blend:2"):
        expected = generate(video_bundle, *arguments, "--switch", mode)
        prompts = {6: "a dog", 0: "a cat"}
        assert same(make(pipeline, prompts, seed=3, frames=12, switch=mode), expected)


@pytest.mark.parametrize("mode", [None, "partial", "none", "blend:2"])
def test_a_prompt_counts_from_the_next_block_on(pipeline: ll.Pipeline, mode: str | None) -> None:
    expected = make(pipeline, {0: "a cat", 9: "a dog"}, frames=18, switch=mode)
    blocks = []
    with pipeline.video("a cat", frames=18) as video:
        for block in video:
            blocks.append(block)
            if block.index == 2:
                video.prompt("a bird")
                video.prompt("a dog", mode=mode)
    assert same((latents(blocks), frames(blocks)), expected)
    assert [block.prompt for block in blocks] == ["a cat"] * 3 + ["a dog"] * 3


def test_a_prompt_before_the_first_block_and_one_instead_of_a_cue(pipeline: ll.Pipeline) -> None:
    expected = make(pipeline, {0: "a dog", 3: "a bird", 6: "a cat"}, frames=9)
    blocks = []
    with pipeline.video({0: "a cat", 3: "a fox", 6: "a cat"}, frames=9) as video:
        video.prompt("a dog")
        blocks.append(next(video))
        video.prompt("a bird")
        blocks += video
    assert same((latents(blocks), frames(blocks)), expected)


def test_prompts_come_from_other_threads(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat") as video:
        for number in range(4):
            thread = threading.Thread(target=video.prompt, args=(f"prompt {number}",))
            thread.start()
            thread.join()
            assert next(video).prompt == f"prompt {number}"


def test_an_endless_video_begins_as_a_short_one(pipeline: ll.Pipeline) -> None:
    expected = make(pipeline, "a cat", frames=9)
    for length in ({}, {"seconds": float("inf")}):
        with pipeline.video("a cat", **length) as video:
            blocks = list(islice(video, 3))
            assert same((latents(blocks), frames(blocks)), expected)


def test_blocks_may_be_made_ahead(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat", frames=12) as video:
        made = [(block.index, video.blocks_made, block.latents) for block in video.ahead(2)]
    assert [(index, ahead) for index, ahead, _ in made] == [(0, 3), (1, 4), (2, 4), (3, 4)]
    expected, _ = make(pipeline, "a cat", frames=12)
    assert np.array_equal(np.concatenate([latent for *_, latent in made], axis=1), expected)


def test_blocks_can_be_read_after_their_video(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat", frames=30) as video:
        blocks = list(video)
    expected = make(pipeline, "a cat", frames=30)
    assert same((latents(blocks), frames(blocks)), expected)


def test_latents_alone(pipeline: ll.Pipeline) -> None:
    expected, _ = make(pipeline, "a cat", frames=3)
    with pipeline.video("a cat", frames=3, decode=False) as video:
        block = next(video)
        assert np.array_equal(block.latents, expected)
        for picture in (lambda: block.frames, lambda: video.size, lambda: video.writer("v.mp4")):
            with pytest.raises(UsageError, match="makes no pictures: it was asked for with"):
                picture()


def test_a_batch_is_several_videos_of_one_prompt(pipeline: ll.Pipeline) -> None:
    prompts = {0: "a cat", 3: "a dog"}
    with pipeline.video(prompts, frames=6, batch=2, seed=4) as video:
        first, second = video
        assert first.frames.shape == (2, FIRST_FRAMES, *SIZE, 3)
        assert second.latents.shape == (2, 3, 16, 4, 6)
        assert not np.array_equal(*second.frames)
        video.save_state("state")
    with pipeline.video(resume="state", frames=3) as resumed:
        assert next(resumed).frames.shape == (2, FRAMES, *SIZE, 3)
    with pipeline.video(prompts, frames=9, batch=2, seed=4) as video:
        *_, last = video
    with pipeline.video(resume="state", frames=3) as resumed:
        assert np.array_equal(next(resumed).frames, last.frames)


def test_settings_timelines_and_presets(pipeline: ll.Pipeline, video_bundle: Path) -> None:
    Path("t.yaml").write_text("- {frame: 0, prompt: a cat}\n- {seconds: 1, prompt: a dog}\n")
    narrow = ["rollout.window_frames=6"]
    found = make(pipeline, timeline="t.yaml", seconds=2, overrides=narrow)
    options = ("--timeline", "t.yaml", "--seconds", 2, "--set", *narrow)
    assert same(found, generate(video_bundle, *options))
    Path("t.jsonl").write_text('"a bird"\n\n{"prompts": ["a cat", "a dog"]}\n')
    lines = {"timeline": "t.jsonl", "line": 3, "switch_frames": [3]}
    assert same(
        make(pipeline, frames=6, **lines), make(pipeline, {0: "a cat", 3: "a dog"}, frames=6)
    )
    Path("p.yaml").write_text("rollout: {window_frames: 6}\n")
    assert same(make(pipeline, timeline="t.yaml", seconds=2, preset="p.yaml"), found)


def test_what_a_person_should_know_is_told(
    pipeline: ll.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    with pipeline.video("a " * 9, frames=4, notify=told.append) as video:
        next(video)
        assert "4 latent frames are no whole number of blocks; making 6" in told[0]
        assert "is longer than 5 tokens; it was cut after" in told[1]
        video.prompt("long " * 9)
        next(video)
    assert len(told) == 3 and not caplog.messages
    with pipeline.video("a cat", frames=4):
        assert "making 6" in caplog.messages[0]


def test_a_replay(pipeline: ll.Pipeline, video_bundle: Path) -> None:
    config, drawn = pipeline.config, np.random.default_rng(4)
    steps, text = len(config.rollout.steps), config.transformer
    tensors = {
        "noise": drawn.standard_normal((2, 6, *config.latent_shape)),
        "renoise": drawn.standard_normal((2, steps - 1, 2, 3, *config.latent_shape)),
        "prompt.0": drawn.standard_normal((1, text.text_len, text.text_dim)),
        "prompt.1": drawn.standard_normal((2, text.text_len, text.text_dim)),
    }
    schedule = '[{"frame": 0, "prompt": 0}, {"frame": 3, "prompt": 1}]'
    save_file({k: v.astype(np.float32) for k, v in tensors.items()}, "r", {"schedule": schedule})
    with pipeline.video(replay="r") as video:
        blocks = list(video)
        assert [block.prompt for block in blocks] == ["prompt.0", "prompt.1"]
        assert blocks[0].frames.shape == (2, FIRST_FRAMES, *SIZE, 3)
        with pytest.raises(UsageError, match="a replay has its own prompts"):
            video.prompt("a cat")
        with pytest.raises(UsageError, match="a replay takes its noise from a file"):
            video.save_state("s")
    arguments = ["--replay", "r", "--latents-out", "l", "--quiet"]
    assert main(["generate", "--bundle", str(video_bundle), *arguments]) == 0
    assert np.array_equal(latents(blocks), load_file("l")["latents"])


# ---- states and checkpoints ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "blend:3"])
def test_a_saved_video_goes_on(pipeline: ll.Pipeline, mode: str) -> None:
    expected = make(pipeline, {0: "a cat", 3: "a dog"}, frames=15, switch=mode, seed=7)
    blocks = []
    with pipeline.video("a cat", frames=6, switch=mode, seed=7) as video:
        blocks.append(next(video))
        video.prompt("a dog")
        blocks.append(next(video))
        video.save_state("deep/state")
    with pipeline.video(resume="deep/state", frames=9) as video:
        assert video.blocks_made == 2
        blocks += video
    assert [block.first_frame for block in blocks] == [0, 9, 21, 33, 45]
    assert {block.prompt for block in blocks[1:]} == {"a dog"}
    assert same((latents(blocks), frames(blocks)), expected)


def test_states_of_the_command_and_of_videos_are_one(
    pipeline: ll.Pipeline, video_bundle: Path
) -> None:
    options = ("--prompt", "a cat", "--frames", 6, "--seed", 2)
    generate(video_bundle, *options, "--save-state", "theirs")
    with pipeline.video("a cat", frames=6, seed=2) as video:
        list(video)
        video.save_state("ours")
    ours, theirs = load_state(Path("ours")), load_state(Path("theirs"))
    assert replace(ours, tensors={}) == replace(theirs, tensors={})
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(np.array_equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
    expected = generate(video_bundle, "--resume", "ours", "--prompt", "a dog", "--frames", 3)
    assert same(make(pipeline, "a dog", resume="theirs", frames=3), expected)
    later = make(pipeline, {9: "a dog"}, resume="theirs", frames=6)
    assert not np.array_equal(later[0][:, :3], expected[0])


def test_a_video_goes_back_to_a_checkpoint(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat", switch="blend:2") as video:
        next(video)
        video.prompt("a dog")
        next(video)
        video.prompt("a bird")
        there = video.checkpoint()
        first = [next(video) for _ in range(3)]
        video.rollback(there)
        again = [next(video) for _ in range(3)]
        assert video.blocks_made == 5
        assert np.array_equal(frames(first), frames(again))
        assert [block.prompt for block in again] == ["a bird"] * 3
        video.rollback(there)
        video.prompt("a fox", mode="none")
        other = next(video)
        assert (other.index, other.prompt) == (2, "a fox")
        assert not np.array_equal(other.frames, first[0].frames)


def test_a_block_that_failed_can_be_gone_back_from(
    pipeline: ll.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = make(pipeline, "a cat", frames=6)
    with pipeline.video("a cat", frames=6) as video:
        blocks = [next(video)]
        there = video.checkpoint()
        with monkeypatch.context() as patch:

            def fail(_plan: object) -> None:
                raise EngineError("a test")

            patch.setattr(video.session.passes, "run_block", fail)
            with pytest.raises(EngineError, match="a test"):
                next(video)
        for refused in (video.checkpoint, lambda: video.save_state("state")):
            with pytest.raises(UsageError, match="the last block was not finished"):
                refused()
        video.rollback(there)
        blocks += video
        assert np.array_equal(latents(blocks), expected)
    assert not Path("state").exists()


# ---- several videos --------------------------------------------------------------------------


def test_videos_side_by_side_are_those_that_each_is_alone(pipeline: ll.Pipeline) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = [
        ({0: "a cat", 6: "a dog"}, {"seed": 1}),
        ("a bird", {"seed": 2}),
        ({0: "a fox", 3: "a cat"}, {"switch": "blend:3"}),
    ]
    expected = [make(pipeline, prompt, frames=12, **options) for prompt, options in asked]
    videos = [pipeline.video(prompt, frames=12, **options) for prompt, options in asked]
    for blocks, alone in zip(zip(*zip(*videos, strict=True), strict=True), expected, strict=True):
        assert same((latents(blocks), frames(blocks)), alone)
    for video in videos:
        video.close()


def test_videos_on_threads_of_their_own(pipeline: ll.Pipeline) -> None:
    prompts = [f"prompt {number}" for number in range(3)]
    expected = [make(pipeline, prompt, frames=9) for prompt in prompts]
    found: dict[str, tuple[Array, Array]] = {}

    def work(prompt: str) -> None:
        found[prompt] = make(pipeline, prompt, frames=9)

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(same(found[prompt], alone) for prompt, alone in zip(prompts, expected, strict=True))


def test_what_is_closed_says_so(video_bundle: Path) -> None:
    before = {*threading.enumerate()}
    pipeline = ll.load(video_bundle, low_memory=True)
    video, other = pipeline.video("a cat"), pipeline.video("a dog")
    block, unread = next(video), next(video)
    kept = block.frames
    video.close()
    video.close()
    assert block.frames is not None and np.array_equal(block.frames, kept)
    for refused in (
        lambda: next(video),
        video.step,
        lambda: video.prompt("a dog"),
        video.checkpoint,
        lambda: video.save_state("s"),
    ):
        with pytest.raises(UsageError, match="the video is closed"):
            refused()
    pipeline.close()
    with pytest.raises(UsageError, match="the video is closed"):
        next(other)
    assert unread.index == 1
    assert {*threading.enumerate()} <= before


# ---- what is refused -------------------------------------------------------------------------

Refusal = tuple[dict[str, Any], str]
REFUSALS: list[Refusal] = [
    ({}, "nothing to show: give prompt TEXT, timeline FILE or replay FILE"),
    ({"prompt": {}}, "nothing to show: prompt is empty"),
    ({"prompt": 7}, "prompt is 7; give a text, or texts by the latent frame"),
    ({"prompt": ["a", "b"]}, "give a text, or texts by the latent frame"),
    ({"prompt": {0: "a", 3: 7}}, "give a text, or texts by the latent frame"),
    ({"prompt": {0: "a", "3": "b"}}, "give a text, or texts by the latent frame"),
    ({"prompt": {3: "a"}}, "prompt at 3: the first prompt is at frame 3"),
    ({"prompt": {-3: "a", 0: "b"}}, "prompt at -3: frame -3 is negative"),
    ({"prompt": "\udcff"}, "prompt: the prompt is not valid UTF-8"),
    ({"prompt": {0: "a", 90: "b"}, "frames": 9}, "prompt at 90: .* past the end"),
    ({"prompt": "a", "timeline": "t.yaml"}, "prompt and timeline: give one of them"),
    ({"prompt": "a", "replay": "r"}, "prompt and replay: give one of them"),
    ({"prompt": "a", "line": 2}, "line and switch_frames belong to timeline"),
    ({"timeline": "t.yaml"}, "t.yaml: cannot be read"),
    ({"replay": "r"}, "r: no such replay file"),
    ({"replay": "r", "frames": 3}, "replay fixes the length: leave out seconds, frames and"),
    ({"replay": "r", "batch": 2}, "say how many videos: leave out batch"),
    ({"resume": "s"}, "s: no such state file"),
    ({"resume": "s", "seed": 1}, "resume goes on with the saved seed: leave out seed"),
    ({"prompt": "a", "seconds": 1, "frames": 3}, "length once"),
    ({"prompt": "a", "seconds": 0}, "a length of 0 seconds"),
    ({"prompt": "a", "frames": -3}, "a length of -3 latent frames"),
    ({"prompt": "a", "seed": -1}, r"seed is -1; allowed: 0 to 2\*\*64 - 1"),
    ({"prompt": "a", "batch": 0}, "batch is 0; allowed: 1 or more"),
    ({"prompt": "a", "switch": "fast"}, "switch 'fast': no way to change the prompt"),
    ({"prompt": "a", "preset": "nothing"}, "nothing: no such preset"),
    ({"prompt": "a", "overrides": ["rollout.rope=absolute"]}, "overrides and preset can change"),
    ({"prompt": "a", "overrides": ["rollout.window_frames=2000"]}, "allowed: at most 1024"),
    ({"prompt": "a", "overrides": ["rollout.window_frames=-1"]}, "an endless video: absolute"),
]


@pytest.mark.parametrize(("options", "words"), REFUSALS)
def test_a_video_that_cannot_be(
    pipeline: ll.Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(assembly.Engines, "session", lambda *_, **__: pytest.fail("a session"))
    with pytest.raises(UsageError, match=words):
        pipeline.video(**options)


def test_prompts_that_cannot_be(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat", frames=3) as video:
        for text, mode, words in (
            (7, None, "the prompt is 7, not a text"),
            ("\udcff", None, "prompt: the prompt is not valid UTF-8"),
            ("a", "fast", "mode 'fast': no way to change the prompt"),
        ):
            with pytest.raises(UsageError, match=words):
                video.prompt(text, mode)  # type: ignore[arg-type]
        assert next(video).prompt == "a cat"
        with pytest.raises(UsageError, match="the video ends after 1 blocks"):
            video.step()
        assert list(video) == []


def test_states_that_cannot_be(pipeline: ll.Pipeline, mini_bundle: Callable[[str], Path]) -> None:
    with pipeline.video("a", frames=3, overrides=["rollout.window_frames=-1"]) as video:
        next(video)
        with pytest.raises(UsageError, match=r"global attention .* set a window"):
            video.save_state("s")
    with pipeline.video("a", frames=3, decode=False) as video:
        with pytest.raises(UsageError, match="needs a prompt before its first block"):
            video.checkpoint()
        next(video)
        video.save_state("s")
    with pytest.raises(UsageError, match=r"resume: .* without pictures .*decode=False"):
        pipeline.video(resume="s")
    with pytest.raises(UsageError, match=r"resume: rollout\.sink_frames was 3"):
        pipeline.video(resume="s", decode=False, overrides=["rollout.sink_frames=1"])
    with pipeline.video(resume="s", decode=False, frames=3) as video:
        assert len(list(video)) == 1
    with ll.load(mini_bundle("relative")) as other:
        with pytest.raises(UsageError, match="making a video needs the vae"):
            other.video(resume="s")
        with pytest.raises(UsageError, match="reading a prompt needs the text encoder"):
            other.video("a", decode=False)


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


def test_the_example_that_steers(
    video_bundle: Path, capsys: pytest.CaptureFixture[str], pipeline: ll.Pipeline
) -> None:
    run_example("steer", video_bundle, "frames.npy", "a car", "in the rain", "--blocks", 2)
    _, expected = make(pipeline, {0: "a car", 6: "in the rain"}, frames=12)
    assert np.array_equal(np.load("frames.npy"), expected)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        *("frame 0: a car", "frame 9: a car"),
        *("frame 21: in the rain", "frame 33: in the rain"),
    ]


def test_the_example_with_two_endings(video_bundle: Path, pipeline: ll.Pipeline) -> None:
    prompts = ("a road", "in the rain", "in the snow")
    run_example("two_endings", video_bundle, "out", *prompts, "--seconds", 1)
    assert {path.name for path in Path("out").iterdir()} == {
        "beginning.mp4",
        "state",
        "endings.npy",
    }
    _, rain = make(pipeline, {0: "a road", 6: "in the rain"}, frames=12)
    found = np.load("out/endings.npy")
    assert found.shape == (24, SIZE[0], 2 * SIZE[1], 3)
    assert np.array_equal(found[:, :, : SIZE[1]], rain[21:])


def test_every_example_is_tested() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names == {"make_video", "steer", "two_endings"}
