"""A video whose pictures are decoded on another GPU: its bits, its order, and what can go wrong.

The second imagined GPU has memory, streams and events of its own; touching what is another's is a
fault, and engines run with whatever context is current.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.two_gpus import LEVELS, largest_difference
from benchmarks.two_gpus import make_video as make_both
from longlive_trt.cli import main
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.ort import gpu as onnxruntime_cuda
from longlive_trt.errors import EngineError, LongLiveError, PluginError
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.streams import Gpu, MemoryInfo
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.memory.base import Buffer
from longlive_trt.runtime.memory.cuda import CudaMemory
from longlive_trt.runtime.state import load_state, restore, save_state
from tests.fakes.cuda import FakeCuda, Schedule, Status
from tests.fakes.engines import put_in_place
from tests.fakes.streams import make_latents
from tests.runtime.gpu.conftest import OnGpus
from tests.runtime.gpu.test_cuda_session import (
    SCHEDULES,
    SCRIPTS,
    Director,
    Script,
    first,
    last,
    make_video,
    require_same,
)

OnTwo = Callable[..., tuple[FakeCuda, Engines]]
QUICK = ("exact switch", "two rows", "read three blocks later")


@pytest.fixture
def on_two(on_gpus: OnGpus) -> OnTwo:
    """Engines that decode on the second GPU."""

    def open_engines(schedule: Schedule = 1, **options: bool) -> tuple[FakeCuda, Engines]:
        return on_gpus(schedule, devices=2, decode_device="cuda:1", **options)

    return open_engines


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "case",
    [
        case if case in QUICK else pytest.param(case, marks=pytest.mark.exhaustive)
        for case in SCRIPTS
    ],
)
def test_two_gpus_make_the_video_of_one(
    on_cpu: Engines, on_two: OnTwo, case: str, schedule: Schedule
) -> None:
    cuda, engines = on_two(schedule)
    expected = make_video(on_cpu, SCRIPTS[case])
    require_same(make_video(engines, SCRIPTS[case]), expected)
    cuda.finish_all()
    assert cuda.queues.fault is None


def test_decoding_is_on_the_other_gpu_alone(on_two: OnTwo) -> None:
    cuda, engines = on_two()
    director = Director(engines, Script(3))
    director.make(3)
    taken = [sum(cuda.memory.live("device", device)) for device in range(2)]
    assert all(taken)
    assert cuda.calls["cuMemcpyPeerAsync"] == 3
    assert {engines.stream(concern).gpu.ordinal for concern in ("decoding", "leaving")} == {1}
    assert engines.stream("transformer").gpu.ordinal == 0
    director.finish()
    engines.close()
    cuda.finish_all()
    assert cuda.queues.fault is None
    assert not cuda.leaks().keys() & {"streams", "events", "device memory", "pinned memory"}


def test_little_memory_decodes_frame_by_frame_there(on_cpu: Engines, on_two: OnTwo) -> None:
    script = Script(5, {3: "exact"})
    _, engines = on_two(low_memory=True)
    require_same(make_video(engines, script), make_video(on_cpu, script))


def test_blocks_that_were_taken_back(on_cpu: Engines, on_two: OnTwo) -> None:
    script = Script(8, {5: "exact"})
    expected = make_video(on_cpu, script)
    _, engines = on_two("lazy")
    director = Director(engines, script)
    director.make(4)
    checkpoint = director.session.checkpoint()
    for blocks in (1, 3):
        director.make(blocks)
        director.session.rollback(checkpoint)
    director.make(4)
    found = director.finish()
    require_same(last(found, 4), last(expected, 4))


@pytest.mark.parametrize("places", ["two, two", "two, cpu", "cpu, two"])
def test_a_state_is_saved_and_resumed(
    on_cpu: Engines, on_two: OnTwo, tmp_path: Path, places: str
) -> None:
    script = Script(6, {1: "exact"})
    expected = make_video(on_cpu, script)
    cuda, engines = on_two()
    before, after = ({"cpu": on_cpu, "two": engines}[place] for place in places.split(", "))
    director = Director(before, script)
    director.make(3)
    save_state(tmp_path / "state", director.session, bundle_key="", seed=0, prompt="")
    require_same(director.finish(), first(expected, 3))
    resumed = Director(after, script)
    restore(resumed.session, load_state(tmp_path / "state"))
    resumed.make(3)
    require_same(resumed.finish(), last(expected, 3))
    assert cuda.queues.fault is None


def test_the_steady_state_is_steady_on_both(on_cpu: Engines, on_two: OnTwo) -> None:
    script = Script(12)
    _, engines = on_two()
    director = Director(engines, script, debug=True)
    director.make(12)
    require_same(director.finish(), make_video(on_cpu, script))


def test_what_the_other_gpu_allocates_is_no_steady_state(on_two: OnTwo) -> None:
    _, engines = on_two()
    director = Director(engines, Script(12), debug=True)
    director.make(10)
    decoder = director.session.decoder
    assert decoder is not None
    start, other = decoder.start, engines.decode_gpu
    assert other is not None

    def allocate(latents: object, **options: bool) -> object:
        other.reserve(1, "a test").close()
        return start(latents, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "start", allocate)
        with pytest.raises(EngineError, match="debug: allocation in the steady state: a test"):
            director.make(1)
    director.session.close()


def test_the_transformer_waits_for_a_copy_and_for_no_decoding(on_two: OnTwo) -> None:
    """However far behind the other GPU is, latents leave their place."""
    cuda, engines = on_two("lazy")
    director = Director(engines, Script(4, lag=4))
    director.make(4)
    engines.stream("transformer").synchronize()
    decoding = engines.stream("decoding")
    event = decoding.record(decoding.gpu.event())
    assert not event.is_over
    event.close()
    director.finish()
    assert cuda.queues.fault is None


@pytest.mark.parametrize("stream", [None, "crossing", "decoding"])
def test_an_order_that_is_not_kept_would_be_seen(
    on_cpu: Engines, on_two: OnTwo, monkeypatch: pytest.MonkeyPatch, stream: str | None
) -> None:
    """Decoding is waited for first, so that nothing else has brought the latents about."""
    script = Script(4, lag=4)
    cuda, engines = on_two("lazy")
    if stream is not None:
        monkeypatch.setattr(engines.stream(stream), "wait_for", lambda _event: None)
    director = Director(engines, script)
    for _ in range(4):
        director.make_block()
        assert director.session.decoder is not None
        director.session.decoder.settle()
    found, expected = director.finish(), make_video(on_cpu, script)
    same = [np.array_equal(*pair) for pair in zip(found.pixels, expected.pixels, strict=True)]
    assert all(same) == (stream is None)
    if stream is not None:
        # What was queued out of order may touch what is gone.
        engines.close()
        cuda.finish_all()
        cuda.queues.fault = None


@pytest.mark.parametrize("name", ["cuMemcpyPeerAsync", "cuStreamWaitEvent", "cuEventRecord"])
def test_a_call_that_fails_is_one_line(on_two: OnTwo, name: str) -> None:
    cuda, engines = on_two()
    director = Director(engines, Script(4))
    director.make(2)
    cuda.fail(name, Status.CUDA_ERROR_INVALID_VALUE)
    with pytest.raises(LongLiveError, match="CUDA could not") as failed:
        director.make(1)
    assert "\n" not in str(failed.value)
    director.session.close()


@pytest.mark.parametrize("allocation", range(4))
def test_too_little_memory_leaves_nothing_behind(on_two: OnTwo, allocation: int) -> None:
    cuda, engines = on_two()
    for graph in ("vae_first", "vae_next"):
        engines.get(graph, "a test")
    engines.decoder(1).close()
    before = cuda.leaks()
    cuda.fail("cuMemAlloc", Status.CUDA_ERROR_OUT_OF_MEMORY, after=allocation)
    with pytest.raises(EngineError, match="of GPU memory are needed"):
        engines.decoder(1)
    assert cuda.leaks() == before


def test_each_gpu_is_asked_for_what_it_will_hold(
    on_two: OnTwo, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engines = on_two()
    asked = {"batch": 1, "total_frames": 12, "text": False}
    engines.require_memory(bundle.config, decode=True, **asked)  # type: ignore[arg-type]
    monkeypatch.setattr(engines.decode_gpu, "memory", lambda: MemoryInfo(1 << 20, 80 << 30))
    with pytest.raises(EngineError, match=r"Imagined GPU: about .* decoding .* are free"):
        engines.require_memory(bundle.config, decode=True, **asked)  # type: ignore[arg-type]
    engines.require_memory(bundle.config, decode=False, **asked)  # type: ignore[arg-type]


def test_of_several_gpus_the_right_one_is_current(fake_cuda: Callable[..., FakeCuda]) -> None:
    """Whatever a library chose meanwhile, on this thread."""
    cuda = fake_cuda(devices=2)
    gpus = [Gpu(0), Gpu(1)]
    taken = []
    for gpu in (*gpus, *gpus):
        cuda.choose(1 - gpu.ordinal)
        taken.append(gpu.reserve(100 + gpu.ordinal, "a test"))
    assert [cuda.memory.live("device", device) for device in range(2)] == [[100] * 2, [101] * 2]
    for memory in taken:
        memory.close()
    assert {gpus[0].context, gpus[1].context} == {0, 1}
    assert driver.device_facts(1).ordinal == 1


def test_what_is_let_go_of_leaves_the_current_gpu(fake_cuda: Callable[..., FakeCuda]) -> None:
    """Python may collect what lay on one GPU while a library works on the other, on this thread."""
    cuda = fake_cuda(devices=2)
    first, second = Gpu(0), Gpu(1)
    stream = second.stream()
    for lost in (
        first.reserve(100, "a test"),
        first.event(),
        first.stream(),
        first.pinned((3,), np.dtype(np.float32)),
    ):
        cuda.choose(1)
        lost.close()
        driver.check(cuda.launch(stream.handle, lambda: None), "launch on the second GPU")
    assert not cuda.memory.live("device", 0)


@pytest.mark.parametrize(
    ("arguments", "devices", "message"),
    [
        (("--device", "cuda", "--decode-device", "cuda:1"), 1, "this machine has no such GPU"),
        (("--device", "cuda", "--decode-device", "cuda:0"), 2, "the transformer runs there alr"),
        (("--decode-device", "cuda:1"), 2, "runs on a CPU here, and decodes there"),
        (("--device", "cuda", "--decode-device", "gpu1"), 2, "another GPU by its number, as cuda"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "bench"])
def test_what_cannot_decode_is_refused_in_one_line(
    command: str,
    arguments: tuple[str, ...],
    devices: int,
    message: str,
    video_bundle: Path,
    fake_cuda: Callable[..., FakeCuda],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    put_in_place(fake_cuda(devices=devices), monkeypatch)
    options = {"generate": ("--prompt", "a cat", "--frames", "3", "--out", str(tmp_path / "v.gif"))}
    values = [command, "--bundle", str(video_bundle), *options.get(command, ()), *arguments]
    assert main(values) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert said.count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_from_two_gpus(
    video_bundle: Path,
    fake_cuda: Callable[..., FakeCuda],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cuda = fake_cuda(devices=2)
    put_in_place(cuda, monkeypatch)
    values = ["generate", "--bundle", str(video_bundle), "--prompt", "a cat", "--frames", "9"]
    made = []
    for name, options in (
        ("two", ("--device", "cuda", "--decode-device", "cuda:1")),
        ("one", ("--device", "cuda")),
    ):
        out = tmp_path / f"{name}.gif"
        assert main([*values, *options, "--out", str(out), "--quiet"]) == 0
        made.append(out.read_bytes())
    assert made[0] == made[1]
    assert cuda.calls["cuMemcpyPeerAsync"] == 3
    assert cuda.queues.fault is None
    assert np.frombuffer(made[0], np.uint8).any()


def test_both_ways_are_measured_and_compared(
    bundle: Bundle, fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(fake_cuda(devices=2), monkeypatch)
    one, two = (
        make_both(bundle, "cuda", elsewhere, compared=3, blocks=4) for elsewhere in (None, "cuda:1")
    )
    assert one.pictures.shape[1] == 33 and largest_difference(one.pictures, two.pictures) == 0
    assert [len(way.gpus) for way in (one, two)] == [1, 2]
    assert [len(way.report()["series_ms"]) for way in (one, two)] == [4, 4]
    changed = one.pictures.copy()
    changed[0, 20, 1, 2, 0] ^= 4
    assert largest_difference(one.pictures, changed) == 4


@pytest.fixture(scope="module")
def capability() -> tuple[int, int]:
    """Of two real GPUs of one kind."""
    try:
        facts = [driver.device_facts(ordinal) for ordinal in range(2)]
    except PluginError as error:
        pytest.skip(str(error))
    if facts[0].capability != facts[1].capability:
        pytest.skip(f"needs two GPUs of one kind, found {facts}")
    if onnxruntime_cuda.PROVIDER not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no GPU support")
    return facts[0].capability


@pytest.mark.gpu
def test_our_kernels_run_on_the_other_gpu(capability: tuple[int, int], tmp_path: Path) -> None:
    """A decoder's, captured and not: modules, library handles and workspaces of their own there."""
    if capability < (8, 0):
        pytest.skip(f"needs compute capability (8, 0), found {capability}")
    major, minor = capability
    pytest.importorskip("torch")
    from tests.fakes.written import SIZE, TWO, built

    bundle = built(tmp_path, TWO, SIZE, gpu=f"sm{major}{minor}")
    latents = make_latents(bundle.config, 12)
    found = [
        decoded_blocks(bundle, latents, elsewhere) for elsewhere in (None, "cuda:1", None, "cuda:1")
    ]
    # Engines are opened anew each time, and cuDNN may choose another kernel.
    assert all(largest_difference(pictures, found[0]) <= LEVELS for pictures in found)


def decoded_blocks(bundle: Bundle, latents: Any, decode_device: str | None) -> Any:
    """Of three latent frames each, which lie in two places in turn."""
    with Engines(bundle, "cuda", decode_device=decode_device) as engines:
        memory = CudaMemory(engines.stream("transformer"))
        places = {str(n): Buffer((1, 3, *latents.shape[2:]), latents.dtype) for n in range(2)}
        tensors = memory.reserve(places, "latents")
        decoder, pictures = engines.decoder(1), []
        for number, block in enumerate(np.split(latents, 4, axis=1)):
            place = tensors[str(number % 2)]
            memory.write(place, block)
            decoding = decoder.start(place)
            decoding.release()
            pictures.append(decoding.result())
        decoder.close()
        memory.close()
    return np.concatenate(pictures, axis=1)


@pytest.mark.gpu
@pytest.mark.usefixtures("capability")
def test_two_real_gpus_make_the_bits_of_one(bundle: Bundle) -> None:
    """Any two of one kind: the mini bundle's graphs run on what ONNX Runtime runs on."""
    scripts = [Script(12, {5: "exact"}, lag=3), Script(6, batch=2)]
    with Engines(bundle, "cuda") as one:
        expected = [make_video(one, script) for script in scripts]
    free_bytes = []
    for _ in range(2):
        with Engines(bundle, "cuda", decode_device="cuda:1") as two:
            for script, video in zip(scripts, expected, strict=True):
                require_same(make_video(two, script), video)
        free_bytes.append(Gpu(1).memory().free_bytes)
    assert free_bytes[0] == free_bytes[1]
