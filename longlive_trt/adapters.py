"""LoRA adapters: which files they are, whether they fit a model, and what they add to its matrices.

Nothing here needs torch: an export merges adapters with it, and the runtime exchanges matrices
without. Both pair tensors, find scales and refuse misfits by these rules.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from longlive_trt.console.printing import plain, quoted
from longlive_trt.errors import CheckpointError, UsageError
from longlive_trt.files import sha256_file
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.files import read_bytes
from longlive_trt.reading.ranges import Range
from longlive_trt.reading.tensors import FLOATS, TensorHeader, read_header

FloatArray = npt.NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]

FILE_PATTERNS = ("adapter_model.*", "lora.*")
MULTIPLIERS = Range(-1e6, 1e6)
"""Of an adapter: its alpha, its rank, and how strongly it is applied."""

_SUFFIX = ".safetensors"
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_UNSUPPORTED_SETTINGS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")
_WRAPPERS = re.compile(r"^(?:model\.|module\.|diffusion_model\.)+")
_NESTED_WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_orig_mod\.|_checkpoint_wrapped_module\.")
_SHOWN = 10


class StoredSide(Protocol):
    """Half of an adapter's change of one matrix, in whatever file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def is_floating_point(self) -> bool: ...


Side = TypeVar("Side", bound=StoredSide)


@dataclass(frozen=True)
class Pair(Generic[Side]):
    a: Side
    b: Side
    scale: float


@dataclass(frozen=True)
class AdapterSource(Generic[Side]):
    """A file of an adapter, of whatever kind."""

    path: Path
    tensors: Mapping[str, Side]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    rank: float | None
    alpha: float | None
    alpha_source: str


def strip_wrappers(name: str) -> str:
    return _WRAPPERS.sub("", _NESTED_WRAPPERS.sub("", name))


def quoted_names(names: Iterable[object], limit: int = 10) -> str:
    listed = list(names)
    shown = ", ".join(plain(name) for name in listed[:limit])
    rest = len(listed) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def format_problems(problems: Mapping[str, str]) -> str:
    """The first ten by name, one a line."""
    lines = [f"  {name}: {problems[name]}" for name in sorted(problems)[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN} more")
    return "\n".join(lines)


def pair_up(
    source: AdapterSource[Side],
    shapes: Shapes,
    alpha: float | None,
    recognize: Callable[[Iterable[str]], str | None] = lambda _names: None,
) -> tuple[dict[str, Pair[Side]], Settings]:
    """The two sides of every adapted module; refused unless they fit matrices of these shapes.

    ``recognize`` says what a file is that is no adapter.
    """
    settings = _settings(source, alpha)
    sides = _sides(source, recognize)
    _require_fit(source.path, sides, shapes, settings.rank)
    return {module: _pair(*sides[module], settings) for module in sides}, settings


def _settings(source: AdapterSource[Side], alpha: float | None) -> Settings:
    config = _adapter_config(source.path)
    rank = _number(source.path, config.get("r", source.metadata.get("rank")), "rank")
    for value, said_by in (
        (alpha, "the option"),
        (config.get("lora_alpha"), "adapter_config.json"),
        (source.metadata.get("alpha"), "the file's metadata"),
    ):
        if value is not None:
            return Settings(rank, _number(source.path, value, "alpha"), said_by)
    return Settings(rank, None, "none is given, so the rank")


def _adapter_config(weights: Path) -> dict[str, Any]:
    path = weights.with_name("adapter_config.json")
    if not weights.name.startswith("adapter_model") or not path.is_file():
        return {}
    with refusing(CheckpointError, f"{path} is not a JSON object", "get the adapter again"):
        config = parse_json(read_bytes(path, JSON_BYTES))
        if not isinstance(config, dict):
            raise ReadingError(f"it holds a {type(config).__name__}")
    used = [name for name in _UNSUPPORTED_SETTINGS if config.get(name)]
    if used:
        raise CheckpointError(
            f"{path} sets {quoted_names(used)}, which changes what the adapter does: "
            "only plain LoRA can be merged"
        )
    return config


def _number(path: Path, value: object, what: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CheckpointError(f"{path}: the {what} {quoted(value)} is not a number")
    if number not in MULTIPLIERS:
        raise CheckpointError(f"{path}: the {what} is {quoted(value)}; allowed: {MULTIPLIERS}")
    return number


def _sides(
    source: AdapterSource[Side], recognize: Callable[[Iterable[str]], str | None]
) -> dict[str, tuple[Side, Side]]:
    sides: dict[str, dict[str, Side]] = {}
    problems: dict[str, str] = {}
    for raw, tensor in source.tensors.items():
        found = _KEY.fullmatch(_module_key(raw))
        if found is None or found["side"] in sides.get(found["module"], {}):
            problems[raw] = "a second adapter" if found else "not a LoRA tensor"
        else:
            sides.setdefault(found["module"], {})[found["side"]] = tensor
    problems |= {m: f"has lora_{next(iter(s))} only" for m, s in sides.items() if len(s) == 1}
    if problems or not sides:
        raise CheckpointError(_not_an_adapter(source, problems, recognize))
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


def _module_key(raw: str) -> str:
    return strip_wrappers(raw.removeprefix("base_model."))


def _not_an_adapter(
    source: AdapterSource[Side],
    problems: Mapping[str, str],
    recognize: Callable[[Iterable[str]], str | None],
) -> str:
    what = recognize(source.tensors)
    other = f"It is {what}" if what and "LoRA" not in what else ""
    summary = f"{source.path} is no usable LoRA adapter; entries not as expected: {len(problems)}"
    return "\n".join(filter(None, [summary, format_problems(problems), other]))


_OTHER_SIZE = "made for a weight of"


def _require_fit(
    path: Path,
    sides: Mapping[str, tuple[Side, Side]],
    shapes: Shapes,
    rank: float | None,
) -> None:
    checked = {module: _problem(*pair, shapes, module, rank) for module, pair in sides.items()}
    problems = {module: problem for module, problem in checked.items() if problem}
    if len(problems) > 1 and all(_OTHER_SIZE in (problem or "") for problem in checked.values()):
        module = min(problems)
        raise CheckpointError(
            f"{path} is an adapter of a model of another size: none of its {len(sides)} modules "
            f"fits ({module}: {problems[module]}); use an adapter trained on this model"
        )
    if problems:
        raise CheckpointError(
            f"{path} does not fit the transformer; modules that differ: {len(problems)} of "
            f"{len(sides)}\n{format_problems(problems)}\nUse an adapter trained on this model"
        )


def _problem(
    a: StoredSide, b: StoredSide, shapes: Shapes, module: str, rank: float | None
) -> str | None:
    weight = shapes.get(f"{module}.weight")
    if weight is None:
        return "the model has no such module"
    if len(weight) != 2 or len(a.shape) != 2 or len(b.shape) != 2:
        return f"only matrices can be adapted, the weight is {list(weight)}"
    if a.shape[0] != b.shape[1] or a.shape[0] == 0:
        return f"lora_A is of rank {a.shape[0]}, lora_B of rank {b.shape[1]}"
    if rank is not None and a.shape[0] != rank:
        return f"is of rank {a.shape[0]}, but the adapter's settings say {rank:g}"
    if (b.shape[0], a.shape[1]) != tuple(weight):
        return f"{_OTHER_SIZE} {[b.shape[0], a.shape[1]]}, the model's is {list(weight)}"
    if not (a.is_floating_point and b.is_floating_point):
        return "holds whole numbers, not weights"
    return None


def _pair(a: Side, b: Side, settings: Settings) -> Pair[Side]:
    rank = a.shape[0]
    return Pair(a, b, 1.0 if settings.alpha is None else settings.alpha / rank)


# ---- adapters that are exchanged while a model runs ------------------------------------------


@dataclass(frozen=True)
class StoredMatrix:
    """A tensor of a safetensors file, not read yet."""

    header: TensorHeader
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.entries[self.name].shape

    @property
    def is_floating_point(self) -> bool:
        return self.header.entries[self.name].dtype in FLOATS

    def read(self) -> FloatArray:
        values = self.header.read(self.name).astype(np.float32)
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.name} in {self.header.path} holds NaN or infinite values: the weights are "
                "damaged, get them again"
            )
        return values


@dataclass(frozen=True)
class Adapter:
    """What is added to some matrices, and how strongly."""

    path: Path
    sha256: str
    pairs: Mapping[str, Pair[StoredMatrix]]
    strength: float = 1.0

    @property
    def label(self) -> str:
        """What tells it from every other one."""
        return f"{self.sha256}:{self.strength:g}"

    def change_of(self, module: str) -> FloatArray | None:
        """What is added to a module's matrix [in, out], in float32; None for nothing."""
        pair = self.pairs.get(module)
        if pair is None:
            return None
        product: FloatArray = pair.a.read().T @ pair.b.read().T
        product *= np.float32(self.strength * pair.scale)
        return product


def open_adapter(path: Path, shapes: Shapes, strength: float = 1.0) -> Adapter:
    """Refused, before anything is exchanged, where it does not fit matrices of these shapes."""
    MULTIPLIERS.require("the scale of a LoRA", strength)
    file = _file_of(path)
    if file.suffix != _SUFFIX:
        raise UsageError(
            f"{file}: a running model takes adapters as safetensors; make one of it: python -m "
            f"longlive_trt.export.checkpoints.adapter_file {file} {file.with_suffix(_SUFFIX)}"
        )
    with refusing(CheckpointError, file, "give an adapter's safetensors file"):
        header = read_header(file)
    tensors = {name: StoredMatrix(header, name) for name in header.entries}
    try:
        pairs, _ = pair_up(AdapterSource(file, tensors, header.metadata), shapes, None)
    except CheckpointError as error:
        raise CheckpointError(_in_a_line(str(error))) from None
    return Adapter(file, sha256_file(file), pairs, strength)


def _in_a_line(message: str) -> str:
    """Its summary, one example, and the remedy."""
    first, *problems = (line.strip() for line in message.splitlines())
    return "; ".join([first, *problems[:1], *problems[1:][-1:]])


def parse_adapter(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE:SCALE``; a name may have colons of its own."""
    name, colon, scale = text.rpartition(":")
    try:
        return (Path(name), float(scale)) if colon and name else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise UsageError(f"{path} does not exist: check the path")
        return path
    found = sorted(one for pattern in FILE_PATTERNS for one in path.glob(pattern))
    files = [one for one in found if one.suffix == _SUFFIX] or found
    if len(files) != 1:
        raise CheckpointError(
            f"{path}: {len(files)} files of an adapter inside ({quoted_names(FILE_PATTERNS)} are "
            "looked for); name the one to use"
        )
    return files[0]
