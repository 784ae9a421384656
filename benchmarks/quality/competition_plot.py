"""Times of blocks under competition: SVG that follows the reader's light or dark page."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

from benchmarks.quality.svg import picture
from longlive_trt.quality.report.charts import nice_step

_WIDTH, _HEIGHT = 860, 350
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 54, 72
_BAND = 20
_LINES = 4
_STYLE = """
.in{fill:#fff;font-weight:600}.busy{fill:#d9722b;opacity:.1}.target{stroke:#1c1f24}
.on{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}
.rung0{fill:#2f6fdb}.rung1{fill:#2c8a57}.rung2{fill:#b58a10}.rung3{fill:#8a5fc0}.rung4{fill:#8b93a0}
@media (prefers-color-scheme:dark){.in{fill:#0e1116}.on{stroke:#161b22}.target{stroke:#e8eaee}
.rung0{fill:#6ea2ff}.rung1{fill:#5cc08a}.rung2{fill:#d9b64a}.rung3{fill:#b797ea}}"""


def drawn(report: Mapping[str, Any]) -> str:
    """``report``: as ``benchmarks.quality.competition`` keeps it."""
    plot = _Plot(report)
    body = "".join((*plot.ground(), *plot.lines(), *plot.band(), *plot.words()))
    return picture(_WIDTH, _HEIGHT, body, _STYLE)


class _Plot:
    def __init__(self, report: Mapping[str, Any]) -> None:
        self._target: float = report["target_ms"]
        self._ends = list(accumulate(report["blocks"].values()))
        self._free, self._held = (report["runs"][name] for name in ("not held", "held"))
        every = [*self._free["block_ms"], *self._held["block_ms"], self._target]
        self._step = nice_step(max(every) / _LINES)
        self._most: float = self._step * (int(max(every) / self._step) + 1)
        self._last: int = self._ends[-1]

    def _x(self, block: float) -> float:
        return _LEFT + round((_WIDTH - _LEFT - _RIGHT) * block / self._last, 1)

    def _y(self, ms: float) -> float:
        return _HEIGHT - _BOTTOM - round((_HEIGHT - _TOP - _BOTTOM) * ms / self._most, 1)

    def ground(self) -> Iterator[str]:
        begin, end = (self._x(block) for block in self._ends[:2])
        yield (
            f'<rect class="busy" x="{begin}" y="{_TOP}" width="{end - begin:.1f}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"/>'
        )
        for number in range(round(self._most / self._step) + 1):
            ms = number * self._step
            y = self._y(ms)
            yield (
                f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
                f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{ms:g}</text>'
            )

    def lines(self) -> Iterator[str]:
        for kind, run in (("orange", self._free), ("blue", self._held)):
            yield f'<polyline class="line {kind}" points="{self._path(run["block_ms"])}"/>'
        y = self._y(self._target)
        yield f'<line class="target dashed" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="on" x="{_LEFT + 6}" y="{y - 7}">target {self._target:g} ms</text>'

    def _path(self, block_ms: Sequence[float]) -> str:
        return " ".join(f"{self._x(n + 1.5)},{self._y(ms)}" for n, ms in enumerate(block_ms))

    def band(self) -> Iterator[str]:
        """What the held video was made with."""
        changes = self._held["presets"]
        names = list(dict.fromkeys(change["preset"] for change in changes))
        ends = [*(change["block"] for change in changes[1:]), self._ends[-1]]
        top = _HEIGHT - _BOTTOM + 10
        for change, end in zip(changes, ends, strict=True):
            begin, name = change["block"], change["preset"]
            width = self._x(end) - self._x(begin)
            yield (
                f'<rect class="rung{min(4, names.index(name))}" x="{self._x(begin)}" y="{top}" '
                f'width="{max(1.0, width - 1.5):.1f}" height="{_BAND}" rx="3"/>'
            )
            if width > 7 * len(name) + 8:
                x = self._x(begin) + width / 2
                yield (
                    f'<text class="in" x="{x:.1f}" y="{top + 14}" text-anchor="middle">'
                    f"{escape(name)}</text>"
                )

    def words(self) -> Iterator[str]:
        yield f'<text class="title" x="{_LEFT}" y="24">Milliseconds from block to block</text>'
        x = _WIDTH - _RIGHT - 190
        for place, (kind, name) in enumerate((("orange", "not held"), ("blue", "held"))):
            left = x + 100 * place
            yield (
                f'<line class="line {kind}" x1="{left}" x2="{left + 22}" y1="20" y2="20"/>'
                f'<text x="{left + 28}" y="24">{name}</text>'
            )
        middle = sum(self._x(block) for block in self._ends[:2]) / 2
        above = f'y="{_TOP - 8}" text-anchor="middle"'
        yield f'<text x="{middle:.1f}" {above}>other programs run</text>'
        step = int(nice_step(self._ends[-1] / 8)) or 1
        for number in range(int(self._ends[-1] / step) + 1):
            block = number * step
            yield (
                f'<text x="{self._x(block)}" y="{_HEIGHT - 20}" text-anchor="middle">{block}</text>'
            )
        yield f'<text x="{_LEFT - 8}" y="{_HEIGHT - 20}" text-anchor="end">block</text>'
        yield f'<text x="{_LEFT - 8}" y="{_HEIGHT - _BOTTOM + 24}" text-anchor="end">held at</text>'
