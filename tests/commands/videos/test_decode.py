"""``longlive-trt decode``, and everything before it, from a decoder's file to pictures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")

from longlive_trt.cli import main
from longlive_trt.configs import VaeConfig
from longlive_trt.export.models.decoders import decoder_of, presented
from tests.commands.running import succeeds
from tests.export.models.test_taehv import random_decoder
from tests.shared import Shared

Refused = Callable[..., str]
MakeOnce = Callable[[str, Callable[[Path], object]], Path]
SIZE = (3, 5)
"""Height and width of latent frames: no whole number of a transformer's patches."""
CONFIG = ("--config", "longlive-1.3b", "--set", "latent.height=3", "--set", "latent.width=5")


@pytest.fixture(scope="module")
def checkpoint(shared: Shared) -> Path:
    return shared("tiny-decoder.safetensors")


@pytest.fixture(scope="module")
def exported(shared: Shared) -> Path:
    return shared("tiny-decoder-export")


@pytest.fixture(scope="module")
def bundle(shared: Shared) -> Path:
    return shared("tiny-decoder-fp32")


@pytest.fixture(scope="module")
def bundle_fp16(make_once: MakeOnce, exported: Path) -> Path:
    options = ("--precision", "fp16")
    return make_once(
        "tiny-decoder-fp16",
        lambda path: succeeds("build", "--onnx", exported, *options, "--out", path),
    )


def latents_file(*shape: int, name: str = "l.safetensors", seed: int = 0) -> np.ndarray[Any, Any]:
    latents = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    save_file({"latents": latents}, name)
    return latents


def expected(values: np.ndarray[Any, Any], **changes: Any) -> np.ndarray[Any, Any]:
    model = random_decoder(5, **changes)
    result: np.ndarray[Any, Any] = presented(model.decode(torch.from_numpy(values)), model.config)[
        0
    ].numpy()
    return result


def decoded(bundle: Path, *options: object) -> np.ndarray[Any, Any]:
    outputs = ("--frames-out", "f.safetensors", "--overwrite", "--quiet")
    succeeds("decode", "--bundle", bundle, "--latents", "l.safetensors", *outputs, *options)
    tensors = load_file("f.safetensors")
    assert tensors.keys() == {"frames"}
    return tensors["frames"]


def relative(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    assert found.shape == wanted.shape and found.dtype == np.float32
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# One latent frame, several, two videos, and another size than that of the configuration.
@pytest.mark.parametrize(
    "shape", [(1, 1, 16, 3, 5), (1, 5, 16, 3, 5), (2, 3, 16, 3, 5), (1, 2, 16, 4, 2)], ids=str
)
def test_kept_latents_become_the_frames_of_the_whole_clip(
    in_empty_folder: Path, bundle: Path, bundle_fp16: Path, shape: tuple[int, ...]
) -> None:
    frames = expected(latents_file(*shape))
    assert frames.shape == (shape[0], 4 * shape[1] - 3, 3, 8 * shape[3], 8 * shape[4])
    assert relative(decoded(bundle), frames) <= 1e-5
    assert relative(decoded(bundle_fp16), frames) <= 5e-3


def test_latents_of_any_float_are_taken(in_empty_folder: Path, bundle: Path) -> None:
    latents = latents_file(1, 2, 16, *SIZE).astype(np.float16)
    save_file({"latents": latents, "other": latents}, "l.safetensors")
    assert relative(decoded(bundle), expected(latents.astype(np.float32))) <= 1e-5


def test_low_memory_decodes_as_ever_where_a_bundle_has_no_tiles(
    in_empty_folder: Path, bundle: Path
) -> None:
    latents_file(1, 2, 16, *SIZE)
    assert np.array_equal(decoded(bundle, "--low-memory"), decoded(bundle))


@pytest.mark.exhaustive
def test_a_light_name_takes_raw_latents_unless_it_is_told_otherwise(
    in_empty_folder: Path, checkpoint: Path
) -> None:
    shutil.copy(checkpoint, "lighttaew2_1.safetensors")
    latents = latents_file(1, 2, 16, *SIZE)
    for options, kind in (((), "raw"), (("--set", "vae.latents=normalized"), "normalized")):
        export = ("export", *CONFIG, "--vae", "lighttaew2_1.safetensors", *options)
        succeeds(*export, "--no-check", "--out", "onnx")
        succeeds("build", "--onnx", "onnx", "--out", "b")
        assert relative(decoded(Path("b")), expected(latents, latents=kind)) <= 1e-5


def test_pictures_go_where_frames_of_generate_go(
    in_empty_folder: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = expected(latents_file(2, 2, 16, *SIZE))
    run = ("decode", "--bundle", bundle, "--latents", "l.safetensors")
    succeeds(*run, "--out", "frames/")
    for row in range(2):
        pictures = [np.asarray(Image.open(p)) for p in sorted(Path(f"frames.{row}").glob("*.png"))]
        wanted = (255 * frames[row].transpose(0, 2, 3, 1)).astype(int)
        assert np.abs(np.stack(pictures).astype(int) - wanted).max() <= 1
    latents_file(1, 4, 16, *SIZE)
    capsys.readouterr()
    succeeds(*run, "--out", "v.mp4", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["frames"], told["width"], told["decoder"], told["kind"]) == (
        *(13, 40, "light", "taehv"),
    )
    with av.open("v.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 13


def test_a_bundle_of_a_decoder_alone_is_a_bundle(
    bundle: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    succeeds("verify", bundle)
    succeeds("pack", bundle, "--out", "b.tar.zst")
    succeeds("unpack", "b.tar.zst", "--out", "again")
    succeeds("inspect", "again", "--json")
    assert '"kind": "taehv"' in capsys.readouterr().out
    succeeds("verify", bundle, "--against", bundle, "--blocks", 1)
    told = capsys.readouterr().out
    assert "vae_next" in told and "passed" in told
    refused(
        *("generate", "--bundle", bundle, "--prompt", "a cat", "--out", "v.mp4"),
        words=("generating needs the transformer", "--transformer"),
    )


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda: None, ("no such file", "--latents-out")),
        (lambda: Path("l.safetensors").write_text("text"), ("not a readable safetensors file",)),
        (lambda: save_file({"other": np.ones(3)}, "l.safetensors"), ("no tensor latents", "other")),
        (lambda: latents_file(2, 16, 3, 5), ("[2, 16, 3, 5]", "[batch, frames, channels")),
        (lambda: latents_file(1, 0, 16, 3, 5), ("none of them 0",)),
        (lambda: latents_file(1, 1, 8, 3, 5), ("8 x 3 x 5", "takes 16 x", "that model")),
        (
            lambda: save_file({"latents": np.ones((1, 1, 16, 3, 5), np.int32)}, "l.safetensors"),
            ("stored as I32", "F16"),
        ),
        (
            lambda: save_file(
                {"latents": np.full((1, 1, 16, 3, 5), np.nan, np.float32)}, "l.safetensors"
            ),
            ("NaN or infinity",),
        ),
    ],
)
def test_other_latents_are_refused_before_any_work(
    bundle: Path, refused: Refused, write: Callable[[], object], words: tuple[str, ...]
) -> None:
    write()
    run = ("decode", "--bundle", bundle, "--latents", "l.safetensors", "--quiet")
    refused(*run, "--frames-out", "f.safetensors", words=words)
    refused(*run, "--out", "v.mp4", words=words)


def test_outputs_that_cannot_be_are_refused(bundle: Path, refused: Refused) -> None:
    latents_file(2, 1, 16, *SIZE)
    run = ("decode", "--bundle", bundle, "--latents", "l.safetensors")
    refused(*run, words=("--out", "--frames-out"))
    refused(*run, "--out", "v.mp4", "--frames-out", "f.safetensors", words=("not both",))
    refused(*run, "--frames-out", "l.safetensors", words=("already exists",))
    refused(
        *run, "--frames-out", "l.safetensors", "--overwrite", words=("cannot be its output too",)
    )
    refused(*run, "--frames-out", f"{bundle}/f", words=("inside a bundle",))
    refused(*run, "--out", "v.avi", words=("no kind of video",))
    refused(*run, "--decoder", "full", "--out", "v.mp4", words=("holds the light decoder only",))


def test_a_decoder_of_another_kind_than_the_configuration_says(
    checkpoint: Path, refused: Refused
) -> None:
    export = ("export", *CONFIG, "--vae", checkpoint, "--out", "onnx")
    refused(*export, "--set", "vae.kind=wan", words=("of kind taehv", "vae.kind=wan"))
    refused(*export, "--set", "vae.kind=tiny", words=("vae.kind is 'tiny'", "wan, taehv"))


@pytest.mark.exhaustive
def test_a_light_decoder_of_wans_structure(in_empty_folder: Path) -> None:
    """Wan's decoder with a quarter of the channels."""
    config = VaeConfig(dim=24)
    torch.manual_seed(3)
    model = decoder_of(config).eval().requires_grad_(False)
    torch.save(model.state_dict(), "lightvaew2_1.pth")
    size = ("--set", "latent.height=2", "--set", "latent.width=3")
    export = ("export", "--config", "longlive-1.3b", "--vae", "lightvaew2_1.pth", *size)
    assert main([*export, "--out", "onnx"]) == 1
    succeeds(*export, "--set", "vae.dim=24", "--no-check", "--out", "onnx")
    succeeds("build", "--onnx", "onnx", "--out", "b")
    latents = latents_file(1, 3, 16, 2, 3)
    frames = model.decode(torch.from_numpy(latents)).clamp(-1, 1).numpy()
    assert relative(decoded(Path("b")), frames) <= 1e-5
