"""The command line: finding commands, and turning failures into one line and an exit code."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longlive_trt import __version__, commands
from longlive_trt.cli import COMMANDS, Entry, main
from longlive_trt.extras import install_command

ROOT = Path(__file__).resolve().parents[1]

AddCommand = Callable[[str, str], None]


@pytest.fixture
def add_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AddCommand]:
    """Adds a command with the given body to the group."""
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    before = set(sys.modules)

    def add(name: str, body: str) -> None:
        source = f"import click, logging\n@click.command()\ndef command():\n    {body}\n"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setitem(COMMANDS, name.replace("_", "-"), Entry(name, ""))

    yield add
    for name in set(sys.modules) - before:
        if name.startswith(f"{commands.__name__}."):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    logger = logging.getLogger("longlive_trt")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers, logger.level = handlers, level


def test_help_lists_every_command_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2].split("\n")
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in listed if line.strip()}
    assert shown == {name: entry.summary for name, entry in COMMANDS.items()}


def test_every_command_module_has_its_entry() -> None:
    folder = Path(*commands.__path__)
    modules = {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("[!_]*.py")
    }
    assert modules == {entry.module for entry in COMMANDS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: longlive-trt {name}" in capsys.readouterr().out


def test_help_imports_no_command(
    add_command: AddCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command("broken_one", "pass\nraise RuntimeError('imported')")
    assert main(["--help"]) == 0
    assert "broken-one" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip().endswith(__version__)


@pytest.mark.parametrize("arguments", [["no-such-command"], ["--no-such-option"], ["doctor", "x"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert arguments[-1] in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("genrate", "generate"), ("Build", "build"), ("unpck", "unpack"), ("exprot", "export")],
)
def test_a_command_that_was_meant_is_named(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([typed]) == 2
    assert f"No such command '{typed}'. Did you mean '{meant}'?" in capsys.readouterr().err


def test_what_is_like_no_command_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["x" * 30]) == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_an_option_that_was_meant_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--promt", "a cat"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_what_is_logged_is_one_line(
    add_command: AddCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "logging.getLogger('longlive_trt.x').warning('two\\nlines of %s', '[/b]' + 'y' * 900)"
    add_command("logs", body)
    assert main(["logs"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: two lines of [/b]yyy") and len(line) < 300


@pytest.mark.parametrize(
    ("error", "code"),
    [("LongLiveError", 1), ("UsageError", 2), ("ConfigError", 2), ("BundleError", 1)],
)
def test_expected_errors_become_one_line(
    error: str, code: int, add_command: AddCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command("fails", f"from longlive_trt import errors; raise errors.{error}('the reason')")
    assert main(["fails"]) == code
    assert capsys.readouterr().err == "error: the reason\n"


def test_debug_keeps_the_traceback(add_command: AddCommand) -> None:
    add_command("fails", "from longlive_trt import errors; raise errors.UsageError('the reason')")
    with pytest.raises(Exception, match="the reason"):
        main(["--debug", "fails"])


def test_a_defect_keeps_its_traceback(add_command: AddCommand) -> None:
    add_command("fails", "raise ZeroDivisionError('a defect')")
    with pytest.raises(ZeroDivisionError):
        main(["fails"])


@pytest.mark.parametrize(
    ("module", "extra"),
    [("modelopt.torch", "quantize"), ("tensorrt_rtx_bindings", "tensorrt-rtx")],
)
def test_a_missing_extra_is_named(
    module: str,
    extra: str,
    add_command: AddCommand,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raising = f"raise ModuleNotFoundError('No module named {module}', name='{module}')"
    add_command("fails", raising)
    assert main(["fails"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert install_command(extra) in message


def test_a_missing_module_of_ours_is_a_defect(add_command: AddCommand) -> None:
    add_command("fails", "import longlive_trt.no_such_module")
    with pytest.raises(ModuleNotFoundError):
        main(["fails"])


def test_files_that_cannot_be_opened_become_one_line(
    add_command: AddCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command("fails", f"open({str(tmp_path / 'absent')!r})")
    assert main(["fails"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent'}: No such file or directory\n"


def test_interruption_exits_with_130(
    add_command: AddCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command("fails", "raise KeyboardInterrupt")
    assert main(["fails"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


@pytest.mark.parametrize(
    ("options", "shown"),
    [([], ["loud"]), (["-v"], ["loud", "normal"]), (["-vv"], ["loud", "normal", "quiet"])],
)
def test_verbosity(
    options: list[str],
    shown: list[str],
    add_command: AddCommand,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = "logging.getLogger('longlive_trt.area')"
    add_command("says", f"log = {log}; log.warning('loud'); log.info('normal'); log.debug('quiet')")
    assert main([*options, "says"]) == 0
    captured = capsys.readouterr()
    assert [word for word in ("loud", "normal", "quiet") if word in captured.err] == shown
    assert captured.out == ""


HELP = "import sys; from longlive_trt.cli import main; sys.exit(main(['--help']))"
# Text that only leaves its buffer when the command is over.
BUFFERED = """
import sys, click
from longlive_trt import cli
write = click.Command("write", callback=lambda: sys.stdout.write("text") and None)
cli.LazyGroup.get_command = lambda *_: write
sys.exit(cli.main(["write"]))
"""


@pytest.mark.parametrize("source", [HELP, BUFFERED], ids=["help", "buffered"])
def test_a_reader_that_goes_away_is_no_traceback(source: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.run(
        [sys.executable, "-c", source],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write_end)
    assert (process.returncode, process.stderr) == (1, b"")
