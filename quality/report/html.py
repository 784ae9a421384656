"""An evaluation as one HTML file that asks for nothing else: pictures, charts and style inside."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from longlive_trt.quality.report.charts import bar_chart, line_chart
from longlive_trt.quality.report.values import notes_of, number_of, spread_of, title_of
from longlive_trt.quality.summary import Line

_STYLE = Path(__file__).with_name("page.css")
_TILES = ("psnr", "ssim", "ms_ssim", "lpips", "clip", "adherence", "changed", "flicker", "frechet",
          "frechet_world")  # fmt: skip
_SHOWN_AT_ONCE = 8

Values = Mapping[str, Any]


def page(values: Values, lines: Sequence[Line]) -> str:
    parts = [_head(values), _tiles(values), _table(values), _charts(values), _cases(values, lines)]
    footer = (
        f"<footer>{escape(values['measured_at'])}, {escape(values['machine']['cpu'])}<br>"
        f"<code>{escape(values['command'])}</code></footer>"
    )
    return document(f"{values['model']}: {title_of(values['bundle'])}", "".join(parts) + footer)


def document(title: str, body: str) -> str:
    style = _STYLE.read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def _head(values: Values) -> str:
    reference = values["reference"]
    height, width = values["video_size"]
    made = ", ".join(_counted(kind, count) for kind, count in values["videos"].items())
    against = f" against {title_of(reference)}" if reference else ""
    return (
        f"<h1>{escape(values['model'])}: {escape(title_of(values['bundle']))}</h1>"
        f'<p class="sub">{escape(made)} of {width} x {height} pixels at {values["fps"]:g} '
        f"frames/s{escape(against)}</p>"
    )


def _counted(kind: str, count: int) -> str:
    name = {"prompt": "video of one prompt", "timeline": "timeline", "long": "long video"}[kind]
    plural = name.replace("video", "videos") if "video" in name else f"{name}s"
    return f"{count} {name if count == 1 else plural}"


def _tiles(values: Values) -> str:
    by_name = {metric["name"]: metric for metric in values["metrics"]}
    tiles = [_tile(by_name[name]) for name in _TILES if by_name.get(name, {}).get("own")]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(metric: Values) -> str:
    unit = f"<small>{escape(metric['unit'])}</small>" if metric["unit"] else ""
    return (
        f'<div class="tile"><b>{number_of(metric["own"], metric["unit"])}{unit}</b>'
        f"<span>{escape(metric['title'])}</span>{_beside(metric)}</div>"
    )


def _beside(metric: Values) -> str:
    """What a tile's figure is to be seen with."""
    told = []
    if metric["other"]:
        told.append(f"reference {number_of(metric['other'], metric['unit'])}")
    if metric["own"]["chance"] is not None:
        told.append(spread_of(metric["own"], metric["unit"]))
    return f"<em>{escape(', '.join(told))}</em>" if told else ""


def _table(values: Values) -> str:
    heading = title_of(values["reference"]) if values["reference"] else ""
    rows = "".join(_row(metric, bool(heading)) for metric in values["metrics"])
    notes = "".join(f'<p class="note">{escape(note)}.</p>' for note in notes_of(values))
    other = f'<th class="n">reference ({escape(heading)})</th>' if heading else ""
    return (
        '<h2>Figures</h2><div class="table"><table><tr><th></th><th class="n">bundle</th>'
        f'{other}<th>better</th><th class="n">videos</th></tr>{rows}</table></div>'
        '<p class="note">Mean of the videos, with their standard deviation. PSNR, SSIM and LPIPS '
        "compare picture by picture with the reference's video of the same seed: once two videos "
        "take different ways, they tell how far apart those are, and not which one is better. A "
        "distance says something where it is above what chance comes to in 19 of 20 exchanges of "
        f"videos.</p>{notes}"
    )


def _row(metric: Values, has_reference: bool) -> str:
    unit = f" {metric['unit']}" if metric["unit"] else ""
    cells = [f"<td>{escape(metric['title'])}</td>", _cell(metric["own"], metric["unit"], unit)]
    if has_reference:
        cells.append(_cell(metric["other"], metric["unit"], unit))
    count = metric["own"]["count"] if metric["own"] else ""
    cells.append(f'<td>{escape(metric["better"])}</td><td class="n">{count}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _cell(figure: Values | None, kind: str, unit: str) -> str:
    if figure is None:
        return '<td class="n">-</td>'
    sign = "± " if figure["chance"] is None else ""
    told = spread_of(figure, kind)
    spread = "" if told == "-" else f"<small>{sign}{told}</small>"
    return f'<td class="n">{number_of(figure, kind)}{escape(unit)}{spread}</td>'


def _charts(values: Values) -> str:
    drawn = [line_chart(title, series) for title, series in values["curves"].items() if series]
    own, other = values["attributes"]["own"], values["attributes"]["other"]
    if own:
        names = ["bundle", "reference"] if other else ["bundle"]
        rows = {name: [own[name], *([other[name]] if other else [])] for name in own}
        drawn.append(bar_chart("attributes shown", rows, names))
    if not drawn:
        return ""
    return f'<h2>Over time</h2><div class="charts">{"".join(drawn)}</div>'


def _cases(values: Values, lines: Sequence[Line]) -> str:
    shown = [_case(line, case) for line, case in zip(lines, values["cases"], strict=True)]
    first, rest = "".join(shown[:_SHOWN_AT_ONCE]), "".join(shown[_SHOWN_AT_ONCE:])
    more = f"<details><summary>all videos</summary>{rest}</details>" if rest else ""
    return f"<h2>Side by side</h2>{first}{more}"


def _case(line: Line, case: Values) -> str:
    prompts = " &rarr; ".join(escape(text) for text in line["texts"].values())
    strips = "".join(_strips(line))
    return (
        f'<div class="case"><header><div>{prompts}</div><span>{escape(_figures(case))}</span>'
        f"</header>{strips}</div>"
    )


def _strips(line: Line) -> Iterator[str]:
    for side, name in (("own", "bundle"), ("other", "reference")):
        if line[side]:
            images = "".join(
                f'<img src="data:image/jpeg;base64,{data}" alt="" loading="lazy">'
                for data in line[side]["stills"]
            )
            yield f'<div class="strip"><span>{name}</span>{images}</div>'


def _figures(case: Values) -> str:
    told = [f"seed {case['seed']}"]
    if "psnr" in case:
        told += [f"{case['psnr']:.1f} dB", f"SSIM {case['ssim']:.3f}"]
    if case["adherence"] is not None:
        told.append(f"{case['adherence']:.0%} shown")
    return ", ".join(told)
