"""The ``longlive-trt`` command: finds the subcommands, and turns failures into one line."""

import difflib
import errno
import importlib
import io
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click
from click.shell_completion import CompletionItem

from longlive_trt import __version__
from longlive_trt.console.printing import accept_every_character, message_lines
from longlive_trt.console.signals import bus_errors_told
from longlive_trt.console.streams import drop_output, lasting_streams
from longlive_trt.errors import LongLiveError
from longlive_trt.extras import EXPORTING, QUANTIZING, SERVING, missing_module_message


@dataclass(frozen=True)
class Entry:
    module: str
    summary: str
    needs: tuple[str, ...] = ()
    """Modules of extras that it always imports, sooner or later."""


# In the order of the pipeline. Kept here so that `--help` imports no command.
COMMANDS = {
    "export": Entry("making.export", "Turn a checkpoint into ONNX graphs.", EXPORTING),
    "calibrate": Entry(
        "making.calibrate", "Quantize the graphs to fp8 or int8, guided by a rollout.", QUANTIZING
    ),
    "build": Entry("making.build", "Compile ONNX graphs into a bundle of engines."),
    "refit": Entry("making.refit", "Give stripped engines their weights."),
    "generate": Entry("running.generate", "Make a video from a bundle and prompts."),
    "decode": Entry("running.decode", "Make pictures of latents that were kept."),
    "serve": Entry(
        "running.serve", "Endless video in the browser that answers to typing.", SERVING
    ),
    "fleet": Entry("running.fleet", "Show the hosts of a fleet, and empty one."),
    "demo": Entry("running.demo", "A video of the demo model, steered by three prompts."),
    "verify": Entry("running.verify", "Check a bundle, file by file and against its reference."),
    "inspect": Entry("shipping.inspect", "Show what a bundle or an archive holds."),
    "pack": Entry("shipping.pack", "Put a bundle into one file."),
    "unpack": Entry("shipping.unpack", "Take a bundle out of its file, every byte checked."),
    "push": Entry("shipping.push", "Store a bundle in a folder, a bucket or on a hub."),
    "pull": Entry("shipping.pull", "Fetch a bundle, or the best one for this machine."),
    "export-triton": Entry("making.export_triton", "Write a model repository for NVIDIA Triton."),
    "bench": Entry("running.bench", "Measure how fast a bundle runs."),
    "eval": Entry("running.eval", "Measure how good a bundle's videos are, against a reference."),
    "presets": Entry("running.presets", "Ready-made settings, with what was measured of each."),
    "models": Entry("running.models", "The models that configurations are shipped for."),
    "doctor": Entry("running.doctor", "Show what this machine can do, and how to add the rest."),
}
_NO_THREAD = "no thread is to be had here; end other programs, or raise the limit (ulimit -u)"
INTERRUPTED = 128 + 2  # what a shell reports for a process ended by SIGINT


@dataclass
class Settings:
    """What the options before the subcommand asked for."""

    debug: bool = False


class LazyGroup(click.Group):
    """Imports a subcommand's module only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"longlive_trt.commands.{COMMANDS[name].module}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}.{_meant(args[0])}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Without importing any command."""
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        commands = [CompletionItem(name, help=COMMANDS[name].summary) for name in names]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _meant(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="longlive-trt")
@click.option("-v", "--verbose", count=True, help="Say what is being done; -vv says more.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, verbose: int, debug: bool) -> None:
    """Compile LongLive video models to engines, and generate video with them.

    \b
    longlive-trt demo               a first video, without a checkpoint
    longlive-trt COMMAND --help     what a command takes, with examples
    """
    ctx.ensure_object(Settings).debug = debug
    _set_up_logging(verbose)


def _set_up_logging(verbose: int) -> None:
    # Our own logger, not the root: a library that logs is not what -v asked for.
    logger = logging.getLogger(__package__)
    logger.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
    logger.handlers = [_Lines()]


class _Lines(logging.Handler):
    """One line each, whatever is in it: messages repeat what other programs say."""

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        click.echo(f"{record.levelname.lower()}: {message_lines(text)}", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    with lasting_streams(), bus_errors_told():
        accept_every_character()
        return _run_and_tell(list(sys.argv[1:] if arguments is None else arguments))


def _run_and_tell(arguments: list[str]) -> int:
    settings = Settings()
    try:
        return _run(arguments, settings)
    except (LongLiveError, ImportError, OSError, MemoryError, RuntimeError) as error:
        message = _one_line(error, arguments)
        if settings.debug or message is None:
            raise
        _complain(f"error: {message}", arguments)
        _give_up_on_output()
        return error.exit_code if isinstance(error, LongLiveError) else 1


def _complain(message: str, arguments: list[str]) -> None:
    click.echo(message_lines(message, arguments), err=True)


def _run(arguments: list[str], settings: Settings) -> int:
    try:
        code = cli.main(arguments, "longlive-trt", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        _complain(said.getvalue().rstrip("\n"), arguments)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader is gone (`| head`).
        drop_output()
        return 1
    return code if isinstance(code, int) else 0


def _give_up_on_output() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()


def _one_line(error: Exception, arguments: list[str]) -> str | None:
    """The message of an expected failure; None for one that is a defect of ours."""
    if isinstance(error, ModuleNotFoundError):
        command = next((name for name in arguments if name in COMMANDS), None)
        needs = COMMANDS[command].needs if command else ()
        return missing_module_message(error.name or "", needs)
    if isinstance(error, ImportError):
        return _describe_import_error(error)
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory for this; end other programs, or ask for less"
    if isinstance(error, RuntimeError):
        return _NO_THREAD if str(error) == "can't start new thread" else None
    return str(error)


def _describe_import_error(error: ImportError) -> str:
    name, reason = error.name or "a library", str(error)
    # What the loader says where the memory is limited (ulimit -v).
    lacks_memory = any(words in reason for words in ("failed to map", "allocate memory"))
    remedy = "there is not enough memory for it" if lacks_memory else "install it again"
    return f"{name} cannot be loaded here ({reason}); {remedy}"


def _describe_os_error(error: OSError) -> str:
    reason, name = error.strerror or str(error), error.filename
    if error.errno == errno.ENOSPC:
        # Of a copy, what was to be written is the second name.
        reason, name = reason + "; free some space or choose another disk", error.filename2 or name
    return f"{name}: {reason}" if name else reason
