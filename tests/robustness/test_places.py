"""Pipes, devices, addresses and names in the place of files that are read, and what is said."""

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from longlive_trt.cli import main
from tests.robustness.support import tars
from tests.robustness.support.pairs import each_with_each
from tests.robustness.support.running import complaint_faults, fail_unless_clean, faults, outcome
from tests.robustness.support.samples import Samples

_OUT = ("--latents-out", "out", "--quiet")
_EXPORT = ("export", "--config", "tiny", "--out", "out")
Command = tuple[object, ...]

READERS: dict[str, Callable[[Samples, str], Command]] = {
    "a transformer": lambda _, path: (*_EXPORT, "--transformer", path),
    "a VAE": lambda _, path: (*_EXPORT, "--vae", path),
    "a text encoder": lambda _, path: (*_EXPORT, "--text-encoder", path),
    "an adapter": lambda samples, path: (
        *("export", "--config", samples.config, "--out", "out"),
        *("--transformer", samples.checkpoint, "--lora", path),
    ),
    "a tokenizer": lambda _, path: (*_EXPORT, "--random-weights", 1, "--tokenizer", path),
    "a configuration": lambda _, path: (
        *("export", "--config", path, "--transformer", "none.pt", "--out", "out"),
    ),
    "an export": lambda _, path: ("build", "--onnx", path, "--out", "out"),
    "prompts": lambda samples, path: (
        *("calibrate", "--onnx", samples.export, "--precision", "fp8", "--prompts", path),
        *("--out", "out"),
    ),
    "a calibration": lambda samples, path: (
        *("calibrate", "--onnx", samples.export, "--precision", "fp8", "--calibration", path),
        *("--out", "out"),
    ),
    "a bundle": lambda _, path: ("generate", "--bundle", path, "--prompt", "a", *_OUT),
    "a bundle to verify": lambda _, path: ("verify", path),
    "a bundle to inspect": lambda _, path: ("inspect", path),
    "a bundle to pack": lambda _, path: ("pack", path, "--out", "out"),
    "a bundle to push": lambda _, path: ("push", path, "out"),
    "an archive": lambda _, path: ("unpack", path, "--out", "out"),
    "an address": lambda _, path: ("pull", path, "--out", "out"),
    "a bundle for Triton": lambda _, path: ("export-triton", path, "--out", "out"),
    "a timeline": lambda samples, path: (
        *("generate", "--bundle", samples.bundle, "--timeline", path, "--frames", 3, *_OUT),
    ),
    "a replay": lambda samples, path: (
        *("generate", "--bundle", samples.bundle, "--replay", path, *_OUT),
    ),
    "a state": lambda samples, path: (
        *("generate", "--bundle", samples.bundle, "--resume", path, *_OUT),
    ),
    "a preset": lambda samples, path: (
        *("generate", "--bundle", samples.bundle, "--prompt", "a", "--preset", path, *_OUT),
    ),
}
PLACES: dict[str, Callable[[], str]] = {
    "a pipe": lambda: _made(os.mkfifo, "pipe.yaml"),
    "a device": lambda: "/dev/zero",
    "a terminal of nobody": lambda: "/dev/null",
    "a folder": lambda: _made(os.mkdir, "folder.json"),
    "a loop": lambda: _made(lambda name: Path(name).symlink_to(name), "loop.yaml"),
    "nothing": lambda: "nothing.json",
    "an empty file": lambda: _made(lambda name: Path(name).touch(), "empty.yaml"),
    "a name of 5000 letters": lambda: "n" * 5000,
    "markup": lambda: _made(lambda name: Path(name).write_text("\0"), "[red][b]:smile:.yaml"),
    "no UTF-8": lambda: _made(lambda name: Path(name).write_text("\0"), os.fsdecode(b"\xff.yaml")),
    "two lines": lambda: _made(lambda name: Path(name).write_text("\0"), "a\n\x1b[31mb.yaml"),
}


def _made(make: Callable[[str], object], name: str) -> str:
    make(name)
    return name


@each_with_each("reader, place", READERS, PLACES)
def test_what_is_no_file_is_refused(reader: str, place: str, samples: Samples, here: Path) -> None:
    arguments = READERS[reader](samples, PLACES[place]())
    # An empty file of settings asks for nothing.
    may_be_empty = place == "an empty file" and reader in ("a preset", "a configuration")
    fail_unless_clean(faults(arguments, codes=[0, 1, 2] if may_be_empty else [1, 2]))


def test_a_catalog_that_is_a_pipe(here: Path) -> None:
    Path("c").mkdir()
    os.mkfifo("c/index.json")
    fail_unless_clean(faults(("pull", "c", "--auto", "--out", "out"), codes=[1]))
    Path("b").mkdir()
    os.mkfifo("b/manifest.json")
    fail_unless_clean(faults(("pull", "b", "--out", "out"), codes=[1]))


@pytest.mark.parametrize(
    "address",
    [
        *("http://[::1/x", "http://[::1]:x/y", "http://host:99999999/x", "http:///x", "http://"),
        *(
            "://x",
            "x://y",
            "zip://a::b",
            "file://[x",
            "s3://",
            "hf://",
            "memory://[",
            "http://\x00",
        ),
        *("https://user:p@ss:word@[::g]/", "gs://[", "ftp://[::1", "a" * 5000 + "://b"),
    ],
    ids=lambda address: repr(address)[:30],
)
def test_addresses(
    address: str, samples: Samples, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longlive_trt.engines.bundles.stores.RETRY_DELAYS_S", ())
    fail_unless_clean(faults(("pull", address, "--out", "out"), codes=[1, 2]))
    fail_unless_clean(faults(("pull", address, "--auto", "--out", "out"), codes=[1, 2]))


@pytest.mark.parametrize("size", [-1, -512, -(2**80), 2**60, "x", 2**63])
def test_archives_of_impossible_sizes(size: object, samples: Samples, here: Path) -> None:
    manifest = (samples.bundle / "manifest.json").read_bytes()
    entry = {"name": "manifest.json", "size": size, "data": manifest.hex()}
    Path("a.tar.zst").write_bytes(tars.packed([entry]))
    for command in (("unpack", "a.tar.zst", "--out", "out"), ("inspect", "a.tar.zst")):
        fail_unless_clean(faults(command, codes=[1]))
    assert not Path("out").exists()


@pytest.mark.parametrize("text", ["[/b]", "[red]x", ":smile:", "[link=x]y[/link]", "\\[b]"])
def test_markup_is_shown_as_it_is(
    text: str, samples: Samples, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(samples.bundle, text)
    assert main(["inspect", text]) == 0
    assert text in capsys.readouterr().out
    assert main(["inspect", f"{text}x"]) == 2
    assert f"{text}x" in capsys.readouterr().err


LONG = "long" * 1200


@pytest.mark.parametrize(
    "arguments",
    [
        (*_EXPORT, "--set", f"fps={LONG}"),
        (*_EXPORT, "--set", f"{LONG}=1"),
        (*_EXPORT, "--set", f"name=[{'a word, ' * 800}]"),
        ("export", "--config", LONG, "--random-weights", "1", "--out", "out"),
        ("inspect", LONG),
        ("pull", f"http://[{LONG}", "--out", "out"),
        ("build", "--onnx", "x", "--out", "out", "--precision", LONG),
        ("bench", "--bundle", LONG),
        ("doctor", LONG),
        (LONG,),
        ("generate", "--bundle", "x", "--prompt", "a", "--switch", LONG, *_OUT),
        ("generate", "--bundle", "x", "--prompt", "a", "--switch-frames", LONG, *_OUT),
        ("generate", "--bundle", "x", "--prompt", "a", "--seed", LONG, *_OUT),
        ("generate", "--bundle", "x", "--prompt", "a", "--out", f"{LONG}.avi"),
        ("serve", "--bundle", LONG),
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_messages_repeat_little(arguments: tuple[str, ...], here: Path) -> None:
    code, _, err = outcome(list(arguments))
    assert code in (1, 2)
    assert not complaint_faults(err)
    assert LONG[:201] not in err and len(err) < 2000


def test_streams_of_few_characters(
    samples: Samples, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = os.fsdecode("caf\u00e9-\u4e2d-".encode() + b"\xff")
    shutil.copytree(samples.bundle, folder)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["inspect", folder]) == 0
    assert main(["inspect", f"{folder}\u4e2d"]) == 2
    # onnxruntime takes no such name for its own files.
    assert main(["generate", "--bundle", folder, "--prompt", "a", "--out", "v.mp4"]) == 1
    bundle = str(samples.bundle)
    video = ["generate", "--bundle", bundle, "--prompt", "\u4e2d", "--frames", "3"]
    assert main([*video, "--out", f"{folder}.mp4", "--latents-out", f"{folder}.latents"]) == 0
    sys.stderr.flush()
    assert isinstance(sys.stderr, io.TextIOWrapper)
    assert b"\\u4e2d" in sys.stderr.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("can't start new thread"), "no thread"),
        (ImportError("libx.so: cannot allocate memory", name="libx"), "libx cannot be loaded"),
    ],
)
def test_what_a_machine_lacks(
    error: Exception, words: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("longlive_trt.commands.shipping.inspect.read_manifest", fail)
    code, _, err = outcome(["inspect", "x"])
    assert code == 1 and words in err
    assert not complaint_faults(err)
