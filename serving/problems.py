"""What can go wrong for a caller: a code for programs, a sentence for people, a status for HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Code = Literal[
    "bad_request",
    "unauthorized",
    "forbidden_host",
    "forbidden_origin",
    "not_found",
    "method_not_allowed",
    "conflict",
    "too_large",
    "prompt_too_long",
    "rate_limited",
    "server_full",
    "draining",
    "loading",
    "session_ended",
    "not_started",
    "already_started",
    "generation_failed",
    "internal",
]

STATUS: dict[Code, int] = {
    "bad_request": 422,
    "unauthorized": 401,
    "forbidden_host": 421,
    "forbidden_origin": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "too_large": 413,
    "prompt_too_long": 422,
    "rate_limited": 429,
    "server_full": 503,
    "draining": 503,
    "loading": 503,
    "session_ended": 410,
    "not_started": 409,
    "already_started": 409,
    "generation_failed": 500,
    "internal": 500,
}


@dataclass(frozen=True)
class _Details:
    values: dict[str, object] = field(default_factory=dict)
    retry_after_s: int | None = None


class ProblemError(Exception):
    """Is told to the caller, and to nobody else."""

    def __init__(
        self, code: Code, sentence: str, *, retry_after_s: int | None = None, **details: object
    ) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence
        self._details = _Details(details, retry_after_s)

    @property
    def status(self) -> int:
        return STATUS[self.code]

    @property
    def retry_after_s(self) -> int | None:
        return self._details.retry_after_s

    def body(self) -> dict[str, object]:
        """``{"error": {"code", "message", ...}}``, on HTTP as on the socket."""
        values = {"code": self.code, "message": self.sentence, **self._details.values}
        return {"error": values}


def unknown_session() -> ProblemError:
    """The same words whether it never was, or is over: ids are not to be guessed at."""
    return ProblemError(
        "not_found", "There is no such session here, or it is over. Start a new one."
    )


def fault_in_words(fault: Mapping[str, Any]) -> str:
    """What pydantic found, as a sentence for who wrote it."""
    context = fault.get("ctx", {})
    if fault["type"] == "json_invalid":
        return f"That is not JSON: {context['error']}."
    if fault["type"] == "union_tag_invalid":
        return f"There is no message {context['tag']!r}; there are {context['expected_tags']}."
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])
