"""The tile shapes that the Hopper attention kernel is compiled for, and which one is used when."""

from dataclasses import dataclass

from longlive_trt.errors import PluginError

HEAD_DIMS = (64, 128)
ELEMENTS = {"bfloat16": 0, "float16": 1, "float8_e4m3": 2, "int8": 3}
EIGHT_BIT = ("float8_e4m3", "int8")
NARROW_HEAD_DIM = 128
"""Of heads that attention reads or writes in 8 bits: a row is 128 bytes, which is one swizzle."""
MAX_PIECES = 3
REST_ALIKE = "LL_REST_ALIKE"
_BARRIER_BYTES = 512
_QUERY_BUFFERS = 2


@dataclass(frozen=True)
class Variant:
    """``warpgroups`` of 64 query rows each against blocks of ``tile_keys`` keys.

    The tensor cores' sums of 8 bits keep too few: those of ``promoted_blocks`` blocks are added to
    the others in float32.
    ``halves`` of a block's exponentials are made one after the other: rounding and adding go on
    beside the second.
    With ``rest_alike`` the last valid key counts for those behind it too.
    ``checked`` kernels are slower and show a race checker how their threads are ordered.
    """

    warpgroups: int
    tile_keys: int
    stages: int
    pipelined: bool = True
    ordered: bool = True
    promoted_blocks: int = 0
    checked: bool = False
    halves: bool = False
    rest_alike: bool = False

    @property
    def tile_rows(self) -> int:
        return 64 * self.warpgroups

    @property
    def threads(self) -> int:
        return 128 * (self.warpgroups + 1)

    def constants(
        self, dtype: str, head_dim: int, out_dtype: str | None = None
    ) -> tuple[tuple[str, int], ...]:
        is_default = out_dtype in (None, default_output(dtype))
        return (
            ("LL_ELEMENT", ELEMENTS[dtype]),
            ("LL_HEAD_DIM", head_dim),
            ("LL_WARPGROUPS", self.warpgroups),
            ("LL_TILE_KEYS", self.tile_keys),
            ("LL_STAGES", self.stages),
            ("LL_PIPELINED", int(self.pipelined)),
            ("LL_ORDERED", int(self.ordered)),
            ("LL_PROMOTED", self.promoted_blocks),
            ("LL_CHECKED", int(self.checked)),
            *([("LL_HALVES", 1)] if self.halves else []),
            *([(REST_ALIKE, 1)] if self.rest_alike else []),
            *([] if is_default else [("LL_OUT", ELEMENTS[str(out_dtype)])]),
        )

    def shared_bytes(self, dtype: str, head_dim: int) -> int:
        item = 1 if dtype in EIGHT_BIT else 2
        ring = 2 * self.stages * self.tile_keys * head_dim * item
        queries = _QUERY_BUFFERS * self.tile_rows * head_dim * item
        staging = self.tile_rows * head_dim * 2 if item == 1 else 0
        return ring + queries + staging + _BARRIER_BYTES

    @property
    def value_panel(self) -> int:
        """Keys in one swizzled panel of transposed 8-bit values."""
        return next(width for width in (128, 64, 32) if self.tile_keys % width == 0)

    def partial_bytes(self, head_dim: int, blocks: int) -> int:
        """Two partly summed tiles for each thread block: outputs, row maxima and row sums."""
        vectors = head_dim // 8 + 1
        return 2 * blocks * self.warpgroups * vectors * 128 * 16


_LONG = Variant(warpgroups=3, tile_keys=80, stages=3)
_SHORT = Variant(warpgroups=3, tile_keys=128, stages=2, pipelined=False)
_NARROW = Variant(warpgroups=3, tile_keys=128, stages=3)
FLOAT8 = Variant(warpgroups=2, tile_keys=128, stages=4, promoted_blocks=2)
INT8 = Variant(warpgroups=2, tile_keys=128, stages=4, promoted_blocks=2, halves=True)
_SHORT_KEYS = 1024


def check_kind(dtype: str, head_dim: int) -> None:
    if dtype not in ELEMENTS:
        raise PluginError(f"dtype is {dtype}: allowed is {', '.join(ELEMENTS)}")
    if head_dim not in HEAD_DIMS:
        raise PluginError(f"head_dim is {head_dim}: allowed is 64 or 128")
    if dtype in EIGHT_BIT and head_dim != NARROW_HEAD_DIM:
        raise PluginError(f"head_dim is {head_dim}: {dtype} attention takes {NARROW_HEAD_DIM} only")


def default_output(dtype: str) -> str:
    return "bfloat16" if dtype in EIGHT_BIT else dtype


def check_output(dtype: str, out_dtype: str, head_dim: int) -> None:
    halves = ["bfloat16", "float16"] if dtype in EIGHT_BIT else [dtype]
    allowed = [*halves, *(["float8_e4m3"] if head_dim == NARROW_HEAD_DIM else [])]
    if out_dtype not in allowed:
        raise PluginError(
            f"out_dtype is {out_dtype}: {dtype} attention with head_dim {head_dim} writes "
            f"{' or '.join(allowed)}"
        )


def choose_variant(dtype: str, head_dim: int, keys: int) -> Variant:
    """The fastest of those measured (docs/plugins.md) for a number of keys."""
    check_kind(dtype, head_dim)
    if dtype in EIGHT_BIT:
        return INT8 if dtype == "int8" else FLOAT8
    if head_dim == 64:
        return _NARROW
    return _SHORT if keys <= _SHORT_KEYS else _LONG
