"""Logs of a server: one JSON object a line, and no word of what people typed unless asked for."""

import json
import logging
import sys
import time
from typing import Any

_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_PRIVATE = {"prompt"}


class JsonFormatter(logging.Formatter):
    def __init__(self, *, prompts: bool) -> None:
        super().__init__()
        self._prompts = prompts

    def format(self, record: logging.LogRecord) -> str:
        moment = time.gmtime(record.created)
        values: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name in _PLAIN or (name in _PRIVATE and not self._prompts):
                continue
            values[name] = value
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False, default=str)


def _is_a_fault(record: logging.LogRecord) -> bool:
    """A socket that was refused by an HTTP answer is one to uvicorn, and is none."""
    return "without completing handshake" not in record.getMessage()


def set_up(*, prompts: bool) -> None:
    """On stderr, for our own logger and the web server's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(prompts=prompts))
    handler.addFilter(_is_a_fault)
    for name, level in (
        ("longlive_trt", logging.INFO),
        ("uvicorn", logging.WARNING),
        ("websockets", logging.ERROR),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
