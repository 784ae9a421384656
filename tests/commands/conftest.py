"""What tests of commands share: an empty folder to run in, and exports of a calibrated model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from longlive_trt.cli import main
from tests.calibration.conftest import small_config, small_export  # noqa: F401 - fixtures
from tests.commands.running import snapshot
from tests.shared import Shared

Refused = Callable[..., str]


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail with one line and leave every file as it was."""

    def run(*arguments: object, words: tuple[str, ...], code: int = 2) -> str:
        before = snapshot(Path())
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        *stages, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and all(s.startswith("building ") for s in stages)
        for word in words:
            assert word in error
        assert snapshot(Path()) == before
        return error

    return run


@pytest.fixture(scope="session")
def quantized_export(shared: Shared) -> Path:
    """In fp8, as the command makes it from a few prompts."""
    return shared("command-fp8")
