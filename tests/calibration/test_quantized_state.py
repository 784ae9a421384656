"""`generate --save-state` and `--resume` keep an eight-bit cache as it is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from longlive_trt.calibration.calibrator import CalibrationRequest, calibrate
from longlive_trt.calibration.folders import SourceExport, write_quantized
from longlive_trt.calibration.prompts import shipped_prompts
from longlive_trt.calibration.recipes import FP8, INT8, RECIPES, Extras
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.cli import main
from longlive_trt.configs.loader import configure
from longlive_trt.engines.build import build
from longlive_trt.export.components import Sources
from longlive_trt.export.exporter import export
from longlive_trt.loading import load
from longlive_trt.precision import PRECISIONS

MakeOnce = Callable[[str, Callable[[Path], object]], Path]
CONFIG = {
    "name": "calibrated-with-prompts",
    "transformer": {
        "dim": 32,
        "heads": 2,
        "layers": 2,
        "ffn_dim": 32,
        "freq_dim": 16,
        "text_len": 8,
        "text_dim": 16,
    },
    "latent": {"height": 4, "width": 4},
    "text_encoder": {
        "dim": 16,
        "attention_dim": 16,
        "ffn_dim": 16,
        "heads": 2,
        "layers": 1,
        "vocab": 320,
    },
}
KINDS = {
    "fp8": Extras(cache=FP8),
    "int8": Extras(cache=INT8),
    "attention": Extras(attention=INT8),
}
PROMPTS = ("--prompt", "a", "--prompt-at", 3, "b", "--prompt-at", 15, "c")


@pytest.fixture(scope="session")
def bundles(make_once: MakeOnce, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make_export(path: Path) -> None:
        config = configure(CONFIG, origin="test_narrow_state")
        export(config, Sources(random_seed=6), path, PRECISIONS["fp32"], check=False)

    def bundle(kind: str) -> Path:
        def make(path: Path) -> None:
            source = SourceExport.open(make_once("calibration-prompts-export", make_export))
            scratch = tmp_path_factory.mktemp("quantized-state")
            request = CalibrationRequest(RECIPES["int8"], tuple(shipped_prompts()[:2]), blocks=2)
            texts = SyntheticTexts(source.config)
            calibration = calibrate(
                source.config, source.transformer(), request, texts, scratch / "progress"
            )
            extras = KINDS[kind]
            write_quantized(source, calibration, scratch / "onnx", extras=extras, check=False)
            build(scratch / "onnx", path, "fp32")

        return make_once(f"calibration-prompts-{kind}", make)

    return bundle


def generate(bundle: Path, *arguments: object) -> None:
    values = ["generate", "--bundle", bundle, *arguments, "--quiet"]
    assert main([str(value) for value in values]) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "stored"),
    [("fp8", ("uint8", "uint8")), ("int8", ("int8", "int8")), ("attention", ("int8", "uint8"))],
)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    bundles: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    stored: tuple[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = bundles(kind)
    generate(bundle, *PROMPTS, "--frames", 24, "--latents-out", "whole", "--seed", 4)
    # The window is full at the first cut, and a prompt waits behind it.
    first = ("--frames", 12, "--latents-out", "l0", "--save-state", "s0")
    generate(bundle, *PROMPTS[:5], *first, "--seed", 4)
    middle = ("--frames", 6, "--latents-out", "l1", "--save-state", "s1")
    generate(bundle, "--resume", "s0", *PROMPTS, *middle)
    generate(bundle, "--resume", "s1", "--frames", 6, "--latents-out", "l2")
    joined = np.concatenate([load_file(f"l{part}")["latents"] for part in range(3)], axis=1)
    assert np.array_equal(joined, load_file("whole")["latents"])
    kept = load_file("s1")
    for layer in (0, 1):
        assert tuple(str(kept[f"{part}_cache.{layer}"].dtype) for part in "kv") == stored
    # A cache in eight bits is a quarter of one in float32.
    assert kept["k_cache.0"].nbytes == kept["k_cache.0"].size


@pytest.mark.exhaustive
def test_a_video_with_attention_in_int8_goes_back(bundles: Callable[[str], Path]) -> None:
    """Over a prompt switch that recomputes keys in the cache's own form."""
    with (
        load(bundles("attention")) as pipeline,
        pipeline.video("a cat", frames=30, decode=False) as video,
    ):
        for _ in range(4):
            next(video)
        there = video.checkpoint()
        video.prompt("a dog")
        first = [next(video).latents for _ in range(3)]
        video.rollback(there)
        video.prompt("a dog")
        again = [next(video).latents for _ in range(3)]
        assert np.array_equal(first, again)
        video.rollback(there)
        assert not np.array_equal(next(video).latents, first[0])


@pytest.mark.exhaustive
def test_a_state_of_another_cache_is_refused(
    bundles: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, out = tmp_path / "state", tmp_path / "latents"
    generate(
        bundles("fp8"), "--prompt", "a", "--frames", 3, "--latents-out", out, "--save-state", state
    )
    values = ["generate", "--bundle", bundles("attention"), "--resume", state, "--frames", 3]
    assert main([*map(str, values), "--latents-out", str(tmp_path / "more")]) == 2
    said = capsys.readouterr().err.strip()
    assert "which keeps keys in int8 and not float8_e4m3); resume with the bundle" in said
    assert said.count("\n") == 0
    assert not (tmp_path / "more").exists()
