"""Real decoders that take over inside a video, against the same ones from its beginning."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from longlive_trt.contract import LATENTS
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.decoding.choice import decoder_named, decoders_of
from longlive_trt.runtime.decoding.switching import DecoderSource, SwitchableDecoder
from longlive_trt.runtime.memory.base import Buffer, HostMemory
from tests.shared import Shared

BLOCK, WINDOW, START, FRAMES = 3, 12, 18, 30

Array = np.ndarray[Any, Any]


def blocks(decoder: SwitchableDecoder, latents: Array) -> Iterator[Array]:
    memory = HostMemory()
    for start in range(0, latents.shape[1], BLOCK):
        block = latents[:, start : start + BLOCK]
        place = memory.reserve({LATENTS: Buffer(block.shape, block.dtype)}, "a block")[LATENTS]
        memory.write(place, block)
        decoding = decoder.start(place)
        yield np.array(decoding.result())
        decoding.release()


def differences(bundle: Bundle) -> list[int]:
    """Of pictures in 8 bits, the largest in each block, from the takeover on."""
    size = (bundle.config.latent.height, bundle.config.latent.width)
    latents = np.random.default_rng(0).standard_normal((1, FRAMES, 16, *size)).astype(np.float32)
    (name,) = decoders_of(bundle)
    config = decoder_named(bundle, name).config
    with Engines(bundle) as engines:
        sources = {name: DecoderSource(config, lambda: engines.decoder(1, name))}
        begun = SwitchableDecoder(sources, name, HostMemory())
        begun.begin()
        whole = list(blocks(begun, latents))[START // BLOCK :]
        late = SwitchableDecoder(sources, name, HostMemory())
        seen = late.past_frames(name, BLOCK, WINDOW)
        late.take_over(name, latents[:, START - seen : START], BLOCK)
        rest = list(blocks(late, latents[:, START:]))
        begun.close()
        late.close()
    pairs = zip(whole, rest, strict=True)
    return [int(np.abs(one.astype(int) - other.astype(int)).max()) for one, other in pairs]


def test_the_tiny_one_goes_on_to_the_bit(shared: Shared) -> None:
    assert not any(differences(open_bundle(shared("tiny-decoder-fp32"))))


@pytest.mark.exhaustive
def test_wans_comes_close_within_three_blocks(shared: Shared) -> None:
    """With random weights, which forget more slowly than the demo's."""
    found = differences(open_bundle(shared("golden-vae-fp32")))
    assert 1 < found[0] <= 24 and max(found[2:]) <= 1
