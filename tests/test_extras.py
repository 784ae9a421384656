"""The command that adds what is missing works from where the package came from."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from longlive_trt import extras, probes
from longlive_trt.errors import MissingExtraError
from longlive_trt.extras import (
    QUANTIZING,
    engine_command,
    engine_extra,
    engine_upgrade,
    install_command,
    missing_module_message,
    require_modules,
)

ROOT = Path(__file__).resolve().parents[1]

InstallFrom = Callable[..., None]


@pytest.fixture
def install_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InstallFrom:
    """Pretends an installation in some site-packages, from an index or from an URL."""
    monkeypatch.setattr(extras, "_ROOT", tmp_path / "site-packages")

    def install(url: str | None = None, **facts: object) -> None:
        text = None if url is None else json.dumps({"url": url, **facts})
        distribution = SimpleNamespace(read_text={"direct_url.json": text}.__getitem__)
        monkeypatch.setattr(metadata, "distribution", lambda _name: distribution)

    return install


def test_a_checkout_is_installed_as_it_lies() -> None:
    assert install_command("cpu") == f"pip install -e '{ROOT}[cpu]'"


def test_from_an_index(install_from: InstallFrom) -> None:
    install_from()
    assert install_command("gpu") == "pip install 'longlive-trt[gpu]'"


def test_from_a_file(install_from: InstallFrom, tmp_path: Path) -> None:
    wheel = tmp_path / "my wheels" / "longlive_trt-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    install_from(wheel.as_uri(), archive_info={})
    assert install_command("cpu") == f"pip install '{wheel}[cpu]'"


def test_from_a_file_that_is_gone(install_from: InstallFrom, tmp_path: Path) -> None:
    install_from((tmp_path / "gone.whl").as_uri(), archive_info={})
    assert install_command("cpu") == "pip install 'longlive-trt[cpu]'"


def test_from_a_copied_checkout(install_from: InstallFrom, tmp_path: Path) -> None:
    install_from(tmp_path.as_uri(), dir_info={})
    assert install_command("export") == f"pip install '{tmp_path}[export]'"


def test_from_a_repository(install_from: InstallFrom) -> None:
    url = "https://example.com/longlive-trt.git"
    install_from(url, vcs_info={"vcs": "git", "commit_id": "abc123"})
    assert install_command("gpu") == f"pip install 'longlive-trt[gpu] @ git+{url}@abc123'"


def test_from_a_server(install_from: InstallFrom) -> None:
    url = "https://example.com/longlive_trt-0.1.0-py3-none-any.whl"
    install_from(url, archive_info={})
    assert install_command("gpu") == f"pip install 'longlive-trt[gpu] @ {url}'"


def test_without_a_record_of_the_installation(
    install_from: InstallFrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    install_from()
    monkeypatch.setattr(metadata, "distribution", absent)
    assert install_command("ship") == "pip install 'longlive-trt[ship]'"


@pytest.mark.parametrize(("vendor", "extra"), [("0x10de", "gpu"), ("0x8086", "cpu")])
def test_the_engine_is_that_of_the_machine(
    vendor: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    monkeypatch.setattr(probes, "PCI_DEVICES", tmp_path)
    assert engine_extra() == extra
    expected = f"this needs onnxruntime, which is not installed: {install_command(extra)}"
    assert missing_module_message("onnxruntime.capi") == expected


@pytest.mark.parametrize("installed", ["onnxruntime", "onnxruntime-gpu"])
def test_the_engine_that_is_there_is_the_one_to_upgrade(
    installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {installed: "1.24"}
    monkeypatch.setattr(extras, "installed_version", versions.get)
    assert engine_upgrade("1.31.1") == f"pip install '{installed}>=1.31.1'"


def test_without_an_engine_the_machine_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed_version", lambda _name: None)
    assert engine_upgrade("1.31.1") == install_command(engine_extra())


def test_one_engine_takes_the_place_of_the_other() -> None:
    replaced, installed = engine_command("gpu").split(" && ")
    assert replaced == "pip uninstall -y onnxruntime onnxruntime-gpu"
    assert installed == install_command("gpu")


def test_modules_of_the_base_have_no_extra() -> None:
    assert missing_module_message("numpy") is None


@pytest.mark.parametrize(
    ("missing", "words", "extras"),
    [
        (("torch",), "torch, which is", "export"),
        (("torch", "modelopt"), "torch and modelopt, which are", "export,quantize"),
        (
            ("torch", "onnxscript", "modelopt", "requests"),
            "torch, onnxscript, modelopt and requests, which are",
            "export,quantize",
        ),
    ],
)
def test_all_that_is_missing_is_said_at_once(
    missing: tuple[str, ...], words: str, extras: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        require_modules(QUANTIZING)
    command = install_command(extras)
    assert str(caught.value) == f"this needs {words} not installed: {command}"
    assert missing_module_message(missing[0], QUANTIZING) == str(caught.value)


def test_nothing_is_said_where_nothing_is_missing() -> None:
    require_modules(QUANTIZING)


WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from longlive_trt.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("missing", "command", "words", "extras"),
    [
        ("torch,modelopt", ("calibrate", "--help"), "torch and modelopt", "export,quantize"),
        ("fastapi,onnxruntime", ("serve",), "onnxruntime and fastapi", "cpu,serve"),
    ],
)
def test_a_command_says_all_that_it_lacks(
    missing: str, command: tuple[str, ...], words: str, extras: str
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expected = f"error: this needs {words}, which are not installed: {install_command(extras)}\n"
    assert (process.returncode, process.stderr) == (1, expected)
