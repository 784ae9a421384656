"""Writes ``deploy/grafana.json``, the dashboard of a fleet: ``python scripts/dashboard.py``."""

import json
from pathlib import Path
from typing import Any

_OUT = Path(__file__).resolve().parents[1] / "deploy" / "grafana.json"
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH, _HEIGHT = 8, 8


def quantile(level: float, name: str) -> str:
    return f"histogram_quantile({level}, sum by (le) (rate({name}_bucket[5m])))"


PANELS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (
        "Slots",
        "short",
        [
            ("sum(max by (host) (longlive_host_slots))", "slots"),
            ("sum(max by (host) (longlive_host_sessions))", "sessions"),
            ("sum(longlive_gateway_waiting)", "waiting"),
        ],
    ),
    (
        "Sessions by host",
        "short",
        [("max by (host) (longlive_host_sessions)", "{{host}}")],
    ),
    (
        "Moves a minute",
        "short",
        [("60 * sum by (reason) (rate(longlive_gateway_moves_total[5m]))", "{{reason}}")],
    ),
    (
        "Pause of a move",
        "s",
        [
            (quantile(0.5, "longlive_gateway_move_seconds"), "p50"),
            (quantile(0.95, "longlive_gateway_move_seconds"), "p95"),
        ],
    ),
    (
        "Commands, from socket to host",
        "s",
        [
            (quantile(0.5, "longlive_gateway_command_seconds"), "p50"),
            (quantile(0.95, "longlive_gateway_command_seconds"), "p95"),
        ],
    ),
    ("Sockets", "short", [("sum(longlive_gateway_sockets)", "sockets")]),
    ("Pictures to viewers", "Bps", [("sum(rate(longlive_gateway_sent_bytes_total[5m]))", "bytes")]),
    ("A save takes", "s", [("max by (host) (longlive_host_save_seconds)", "{{host}}")]),
    ("A state's size", "bytes", [("max by (host) (longlive_host_state_bytes)", "{{host}}")]),
    (
        "Saves that failed",
        "short",
        [("sum by (host) (increase(longlive_host_save_failures[10m]))", "{{host}}")],
    ),
    ("Draining", "short", [("max by (host) (longlive_host_draining)", "{{host}}")]),
    ("Sessions without a host", "short", [("sum(longlive_gateway_moving)", "sessions")]),
]


def dashboard() -> dict[str, Any]:
    return {
        "title": "longlive-trt fleet",
        "uid": "longlive-fleet",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "tags": ["longlive-trt"],
        "templating": {
            "list": [{"name": "source", "type": "datasource", "query": "prometheus", "label": ""}]
        },
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, title: str, unit: str, lines: list[tuple[str, str]]) -> dict[str, Any]:
    row, column = divmod(number, 24 // _WIDTH)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend}
            for index, (expr, legend) in enumerate(lines)
        ],
    }


if __name__ == "__main__":
    _OUT.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
