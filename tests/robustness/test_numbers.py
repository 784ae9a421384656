"""Numbers out of all bounds, and those that are none, wherever one is taken."""

from pathlib import Path
from typing import Any

import pytest

from longlive_trt.errors import LongLiveError
from tests.robustness.support.pairs import each_with_each
from tests.robustness.support.running import complaint_faults, outcome
from tests.robustness.support.samples import Samples

NUMBERS = ("nan", "inf", "-inf", "1e300", "1e400", "-1", "9" * 5000, str(10**24), "x" * 3000, "")
_OUT = ("--latents-out", "out", "--quiet")

OPTIONS: dict[str, tuple[object, ...]] = {
    "generate --frames": ("--prompt", "a", *_OUT),
    "generate --seconds": ("--prompt", "a", *_OUT),
    "generate --seed": ("--prompt", "a", "--frames", 3, *_OUT),
    "generate --line": ("--timeline", "t.jsonl", "--frames", 3, *_OUT),
    "generate --switch-frames": ("--timeline", "t.jsonl", "--frames", 6, *_OUT),
    "generate --switch": ("--prompt", "a", "--frames", 3, *_OUT),
    "bench --blocks": (),
    "bench --switches": (),
    "bench --seconds": (),
    "bench --warmup": (),
    "bench --peak-tflops": (),
    "bench --seed": (),
    "verify --tolerance": (),
    "verify --blocks": (),
    "build --batch": (),
    "build --optimization-level": ("--engine", "tensorrt"),
    "build --workspace-gib": ("--engine", "tensorrt"),
    "build --weights-gib": ("--engine", "tensorrt"),
    "calibrate --error-budget": (),
    "calibrate --blocks": (),
    "calibrate --seed": (),
    "calibrate --max-prompts": (),
    "calibrate --random-weights": (),
    "export --lora-alpha": (),
    "export --random-weights": (),
    "serve --port": (),
    "serve --sessions": (),
    "serve --lead": (),
}
TAKEN = {("generate --seconds", "inf")}
"""Which would be an endless video, if latents could be kept of one."""


def _command(name: str, samples: Samples) -> tuple[object, ...]:
    bundle = {
        "generate": ("--bundle", samples.bundle),
        "bench": ("--bundle", samples.bundle),
        "verify": (samples.bundle, "--against", samples.bundle),
        "build": ("--onnx", samples.export, "--out", "out"),
        "calibrate": ("--onnx", samples.export, "--precision", "fp8", "--out", "out"),
        "export": ("--config", samples.config, "--transformer", "none.pt", "--out", "out"),
        "serve": ("--bundle", samples.bundle),
    }
    return bundle[name]


@each_with_each("option, number", OPTIONS, NUMBERS)
def test_options(option: str, number: str, samples: Samples, here: Path) -> None:
    Path("t.jsonl").write_text('["a"]\n{"prompts": ["a", "b"]}\n')
    command, name = option.split()
    arguments = (command, *_command(command, samples), f"{name}={number}", *OPTIONS[option])
    code, _, err = outcome([str(argument) for argument in arguments])
    assert code in (1, 2), (code, err)
    assert not complaint_faults(err)
    assert not Path("out").exists()


SETTINGS = (
    *("fps=1e10", "fps=5000", "fps=0.0004", "fps=.nan", "fps=.inf", "fps=-1", "fps=1e400"),
    *("transformer.layers=1000000000000", "transformer.dim=1e9", "transformer.heads=100000"),
    *("transformer.eps=1e300", "transformer.text_len=10000000000", "transformer.channels=99999999"),
    *("transformer.patch=[1, 4000, 4000]", "transformer.ffn_dim=99999999999999"),
    *("rollout.window_frames=100000000000000000", "rollout.frames_per_block=1000000000"),
    *("rollout.sink_frames=10000000000", "rollout.timestep_shift=1e300"),
    *("rollout.steps=[1000, 99999999999999999999]", "rollout.context_timestep=1e18"),
    *("latent.height=1000000000000", "latent={height: 4000, width: 4000}", "vae.dim=2000000000"),
    *("vae.multipliers=[1, 100000, 1, 1]", "vae.res_blocks=100000000", "vae.std=[1e-300]"),
    *("text_encoder.vocab=1", "text_encoder.vocab=1000000000000", "text_encoder.layers=99999999"),
    *("text_encoder.max_distance=1000000000000000", "text_encoder.buckets=400000000"),
    *("transformer={dim: 65536, ffn_dim: 65536, layers: 256}", "name=''", "name=[1]"),
    *("a.b.c.d.e.f.g.h.i.j.k.l=1", ".".join("a" * 4000) + "=1"),
)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda text: text[:40])
def test_settings_are_refused_at_the_start(setting: str, here: Path) -> None:
    export = ("export", "--config", "tiny", "--random-weights", 1, "--out", "out")
    code, _, err = outcome([str(argument) for argument in (*export, "--set", setting)])
    assert code == 2, (code, err)
    assert not complaint_faults(err)
    assert "tracing" not in err
    assert not Path("out").exists()


@pytest.mark.parametrize("setting", ["rollout.window_frames=100000000000000000", "fps=1e10"])
def test_settings_of_a_run(setting: str, samples: Samples, here: Path) -> None:
    video = ("generate", "--bundle", samples.bundle, "--prompt", "a", "--frames", 3, *_OUT)
    code, _, err = outcome([str(argument) for argument in (*video, "--set", setting)])
    assert code == 2, (code, err)
    assert not complaint_faults(err)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--frames", 10**18), ("more than a day", "inf")),
        (("--seconds", "1e300"), ("more than a day", "inf")),
        (("--seconds", 86_401), ("86400 s", "inf")),
        (("--prompt-at", 10**30, "b", "--frames", 3), ("1000000000",)),
    ],
)
def test_lengths_name_the_limit(
    option: tuple[Any, ...], words: tuple[str, ...], samples: Samples, here: Path
) -> None:
    video = ("generate", "--bundle", samples.bundle, "--prompt", "a", *option, *_OUT)
    code, _, err = outcome([str(argument) for argument in video])
    assert code == 2
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("build", {"workspace_gib": float("nan")}),
        ("build", {"weights_gib": float("inf")}),
        ("build", {"batch": 10**9}),
        ("build", {"optimization_level": 10**30}),
        ("calibrate", {"precision": "fp8", "error_budget": float("nan")}),
        ("calibrate", {"precision": "fp8", "blocks": 10**18}),
        ("calibrate", {"precision": "fp8", "seed": -1}),
        ("export", {"config": "tiny", "random_weights": 2**80}),
    ],
)
def test_the_functions_have_the_same_limits(
    function: str, arguments: dict[str, Any], samples: Samples, here: Path
) -> None:
    import longlive_trt as ll

    onnx = {} if function == "export" else {"onnx": samples.export}
    with pytest.raises(LongLiveError, match="allowed"):
        getattr(ll, function)(out=here / "out", **onnx, **arguments)


@pytest.mark.parametrize("length", [{"seconds": float("nan")}, {"seconds": 1e308}, {"frames": 0}])
def test_lengths_of_videos(length: dict[str, float], samples: Samples) -> None:
    import longlive_trt as ll

    with ll.load(samples.bundle) as pipeline, pytest.raises(LongLiveError, match="a length of"):
        pipeline.video("a", **length)
