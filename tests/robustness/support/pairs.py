"""Tables of which the quick tests take a part, and ``make test-all`` the whole."""

from collections.abc import Iterable

import pytest

_EVERY = 6


def each_with_each(
    names: str, rows: Iterable[object], columns: Iterable[object]
) -> pytest.MarkDecorator:
    """Parameters of every pair; the quick sixth has all rows and all columns in it."""
    columns = list(columns)
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(
                row,
                column,
                id=f"{_name(row)}-{_name(column)}",
                marks=() if (i + j) % _EVERY == 0 else pytest.mark.exhaustive,
            )
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
        ],
    )


def _name(value: object) -> str:
    return str(getattr(value, "__name__", value))[:24]
