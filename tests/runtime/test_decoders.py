"""Two decoders in one bundle: which makes the pictures, and how one takes over from the other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import longlive_trt as ll
from longlive_trt.cli import main
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.errors import UsageError
from longlive_trt.runtime.decoding.choice import decoder_named, decoders_of
from tests.commands.conftest import Refused, in_empty_folder, refused  # noqa: F401 - fixtures
from tests.commands.running import succeeds

BLOCKS, FRAMES = 6, 18
PROMPT = "a cat"

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def pipeline(two_decoders: Path) -> Any:
    with ll.load(two_decoders) as opened:
        yield opened


@pytest.fixture(scope="module")
def videos(pipeline: ll.Pipeline) -> dict[str, list[Array]]:
    """Each block's pictures, all by one decoder."""
    return {name: made(pipeline, decoder=name) for name in ("full", "light")}


def made(pipeline: ll.Pipeline, **options: Any) -> list[Array]:
    with pipeline.video(PROMPT, frames=FRAMES, **options) as video:
        return [block.frames for block in video]


def test_the_first_is_the_full_one(two_decoders: Path, videos: dict[str, list[Array]]) -> None:
    bundle = open_bundle(two_decoders)
    assert list(decoders_of(bundle)) == ["full", "light"]
    assert decoder_named(bundle, None).graphs == ("vae_first", "vae_next")
    assert decoder_named(bundle, "light").graphs == ("light_vae_first", "light_vae_next")
    with ll.load(two_decoders) as pipeline:
        assert all(map(np.array_equal, made(pipeline), videos["full"]))
    assert not any(map(np.array_equal, videos["light"], videos["full"]))


def test_a_decoder_takes_over_between_blocks(
    pipeline: ll.Pipeline, videos: dict[str, list[Array]]
) -> None:
    order = ["full", "light", "light", "full", "full", "light"]
    with pipeline.video(PROMPT, frames=FRAMES) as video:
        found = []
        for name in order:
            video.decoder(name)
            found.append(video.step().frames)
    for index, name in enumerate(order):
        assert np.array_equal(found[index], videos[name][index]), index


def test_a_rollback_brings_the_decoder_back_too(
    pipeline: ll.Pipeline, videos: dict[str, list[Array]]
) -> None:
    with pipeline.video(PROMPT, frames=FRAMES) as video:
        video.step()
        video.decoder("light")
        checkpoint = video.checkpoint()
        video.step()
        video.decoder("full")
        video.step()
        video.rollback(checkpoint)
        rest = [video.step().frames for _ in range(1, BLOCKS)]
    assert all(map(np.array_equal, rest, videos["light"][1:]))


@pytest.mark.parametrize("after", [None, "full", "light"])
def test_a_saved_video_goes_on_with_its_own_decoder_or_another(
    pipeline: ll.Pipeline, videos: dict[str, list[Array]], tmp_path: Path, after: str | None
) -> None:
    path = tmp_path / "state.safetensors"
    with pipeline.video(PROMPT, frames=FRAMES, decoder="light") as video:
        for _ in range(3):
            video.step()
        video.save_state(path)
    with pipeline.video(resume=path, frames=9, decoder=after) as video:
        rest = [block.frames for block in video]
    assert all(map(np.array_equal, rest, videos[after or "light"][3:]))


def test_kept_latents_become_the_pictures_of_either(
    two_decoders: Path,
    videos: dict[str, list[Array]],
    in_empty_folder: Path,  # noqa: F811
) -> None:
    bundle = ("--bundle", two_decoders, "--quiet")
    succeeds("generate", *bundle, "--prompt", PROMPT, "--frames", FRAMES, "--latents-out", "l")
    for name in ("full", "light"):
        options = (*bundle, "--latents", "l", "--decoder", name, "--overwrite")
        succeeds("decode", *options, "--frames-out", "f")
        frames = load_file("f")["frames"][0].transpose(0, 2, 3, 1)
        pictures = np.concatenate(videos[name])
        # The stand-in's numbers are from -1 to 1, whatever it stands for.
        assert np.abs((127.5 * frames + 127.5).astype(int) - pictures).max() <= 1


def test_a_preset_may_name_a_decoder(
    two_decoders: Path,
    video_bundle: Path,
    refused: Refused,  # noqa: F811
) -> None:
    Path("preview.yaml").write_text("build: {decoder: light}\n")
    run = ("--prompt", PROMPT, "--frames", "3", "--preset", "preview.yaml", "--out", "v.mp4")
    refused(
        *("generate", "--bundle", video_bundle, *run),
        words=("preset preview.yaml", "a bundle with the decoder light", "has full"),
    )
    succeeds("generate", "--bundle", two_decoders, *run, "--quiet")
    assert json.loads(Path("v.mp4.json").read_text())["decoder"] == "light"
    assert main(["generate", "--bundle", str(two_decoders), *run, "--overwrite", "--quiet",
                 "--decoder", "full"]) == 0  # fmt: skip
    assert json.loads(Path("v.mp4.json").read_text())["decoder"] == "full"


def test_a_decoder_that_is_not_there_is_refused(
    video_bundle: Path,
    pipeline: ll.Pipeline,
    refused: Refused,  # noqa: F811
) -> None:
    run = ("--prompt", PROMPT, "--out", "v.mp4", "--decoder", "light")
    words = ("--decoder light", "holds the full decoder only", "--light-vae")
    refused("generate", "--bundle", video_bundle, *run, words=words)
    with ll.load(video_bundle) as other, other.video(PROMPT, frames=3) as video:
        with pytest.raises(UsageError, match="no second decoder"):
            video.decoder("light")
        video.step()
    with pipeline.video(PROMPT, frames=3) as video:
        with pytest.raises(UsageError, match="no decoder 'tiny'; it has: full, light"):
            video.decoder("tiny")
        video.step()
