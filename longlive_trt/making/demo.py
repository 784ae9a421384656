"""The demo's bundle: built from what is shipped when it is first asked for, and kept.

``python -m longlive_trt.making.demo`` makes the shipped graphs anew, after a change of the export.
"""

import atexit
import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from longlive_trt.basics import Report
from longlive_trt.demo.assembly import GRAPHS, assemble
from longlive_trt.demo.geometry import MODEL_FILE, WEIGHTS
from longlive_trt.demo.shipped import SUMS
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import check_files, read_manifest
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.registry import DEFAULT, compiler_named
from longlive_trt.errors import BundleError, UsageError
from longlive_trt.exports import RECORD_NAME, TOKENIZER_NAME, read_export
from longlive_trt.files import EXPORT, cache_folder, locked, publish_directory, scratch_folder
from longlive_trt.precision import precision_named

PRECISION = "fp32"

Notify = Callable[[str], None]


def demo_bundle(notify: Notify, progress: Report) -> Path:
    """The folder of the demo's bundle, which is built if it is not there, or not sound."""
    name = f"demo-{_key()[:16]}"
    kept = cache_folder("bundles") / name
    if _is_sound(kept):
        return kept
    folder = _writable(kept.parent, notify) / name
    with locked(folder.with_name(f".{name}.lock")):
        # Another process may have built it meanwhile.
        if not _is_sound(folder):
            notify(f"building the demo's bundle, once, in {folder}")
            _build(folder, progress)
    return folder


def _build(folder: Path, progress: Report) -> None:
    with scratch_folder(folder.with_name(f"{folder.name}-onnx")) as exported:
        progress("putting the demo's graphs and weights together", 0, 1)
        assemble(exported, graphs=GRAPHS, weights=WEIGHTS)
        build(exported, folder, PRECISION, command="longlive-trt demo", report=progress)


def _key() -> str:
    """Of all that decides what the bundle computes."""
    record = read_export(GRAPHS)
    compiler = compiler_named(
        DEFAULT.name, BuildOptions(), precision_named(PRECISION), record.config
    )
    shipped = [(GRAPHS / RECORD_NAME).read_text(), (WEIGHTS / SUMS).read_text()]
    decisive = [*shipped, asdict(compiler.kind), dict(compiler.options), PRECISION]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _is_sound(folder: Path) -> bool:
    try:
        check_files(folder, read_manifest(folder))
    except (BundleError, UsageError):
        return False
    return True


def _writable(folder: Path, notify: Notify) -> Path:
    """The folder, or one for this run alone where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        aside = Path(tempfile.mkdtemp(prefix="longlive-trt-"))
        atexit.register(shutil.rmtree, aside, ignore_errors=True)
        notify(
            f"{folder}: cannot be written ({error.strerror}), so the demo is built for this run "
            "alone; set XDG_CACHE_HOME to a folder that keeps it"
        )
        return aside


def renew_graphs(folder: Path = GRAPHS) -> None:
    """Export the demo model, with any weights, and keep all but those."""
    from longlive_trt.demo.words import tokenizer_json
    from longlive_trt.making.exporting import export

    with tempfile.TemporaryDirectory() as scratch:
        tokenizer, exported = Path(scratch) / TOKENIZER_NAME, Path(scratch) / "onnx"
        tokenizer.write_text(tokenizer_json(), encoding="utf-8")
        result = export(MODEL_FILE, exported, tokenizer=tokenizer, random_weights=0)
        kept = {n: s for n, s in result.record.files.items() if not n.endswith(".weights")}
        record = replace(result.record, checkpoints={}, files=kept)
        with publish_directory(folder, EXPORT) as fresh:
            for name in kept:
                shutil.copyfile(exported / name, fresh / name)
            (fresh / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")


if __name__ == "__main__":
    renew_graphs()
