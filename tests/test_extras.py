"""The command that adds what is missing works from where the package came from."""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from longlive_trt import extras, probes
from longlive_trt.extras import (
    engine_command,
    engine_extra,
    engine_upgrade,
    install_command,
    missing_module_message,
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
