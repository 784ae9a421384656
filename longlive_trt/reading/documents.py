"""YAML and JSON as plain values, within limits on size, depth, nodes and digits.

A small file can stand for a huge structure: an alias that is repeated, a number of a million
digits, brackets without end. What is read here is small whatever the file says.
"""

import json
from collections.abc import Hashable
from typing import Any, NoReturn

import yaml

from longlive_trt.console.printing import quoted
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.files import MIB, decoded

JSON_BYTES = 16 * MIB
YAML_BYTES = MIB
MOST_DEPTH = 64
MOST_JSON_NODES = 1_000_000
MOST_YAML_NODES = 50_000
"""What an alias stands for counts wherever it is used."""
MOST_DIGITS = 30

_INT_CHARACTERS = 100
_TAG = "tag:yaml.org,2002:"


def parse_json(data: bytes | str) -> Any:
    """Lists, dictionaries, texts, numbers; NaN and infinity are refused, and keys that repeat."""
    _require_size(data, JSON_BYTES)
    text = decoded(data) if isinstance(data, bytes) else data.removeprefix("\ufeff")
    try:
        values = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_int=_whole_number,
            parse_float=_number,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        raise ReadingError(f"not valid JSON ({error.msg})", error.lineno) from None
    except RecursionError:
        raise _too_deep("JSON") from None
    _require_limits(values)
    return values


def parse_yaml(text: str) -> Any:
    """What one YAML document holds; None where there is none."""
    _require_size(text, YAML_BYTES)
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ReadingError(error.problem or "not valid YAML", line) from None
    except yaml.reader.ReaderError as error:
        character = f"the character {ord(error.character):#x}" if _is_text(error) else "a byte"
        raise ReadingError(f"not valid YAML ({character} is not allowed)") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ReadingError(f"not valid YAML ({quoted(str(error))})") from None
    except RecursionError:
        raise _too_deep("YAML") from None


def _is_text(error: yaml.reader.ReaderError) -> bool:
    return isinstance(error.character, str) and len(error.character) == 1


def _require_size(data: bytes | str, most: int) -> None:
    if len(data) > most:
        raise ReadingError(f"{len(data)} bytes large; at most {most // MIB} MiB are read")


def _too_deep(language: str) -> ReadingError:
    return ReadingError(f"not valid {language} (nested deeper than {MOST_DEPTH} levels)")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ReadingError(f"the key {quoted(repeated)} appears twice; keep one")
    return unique


def _whole_number(text: str) -> int:
    if len(text.removeprefix("-")) > MOST_DIGITS:
        raise ReadingError(f"a whole number of {len(text)} digits; at most {MOST_DIGITS} are read")
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ReadingError(f"the number {quoted(text)} is too large")
    return number


def _constant(text: str) -> NoReturn:
    raise ReadingError(f"not valid JSON ({text} is no number of it)")


def _require_limits(values: Any) -> None:
    """After the fact, as the parser's own stack has a limit; without recursion."""
    level, depth, nodes = [values], 0, 0
    while level:
        depth, nodes = depth + 1, nodes + len(level)
        if depth > MOST_DEPTH:
            raise _too_deep("JSON")
        if nodes > MOST_JSON_NODES:
            raise ReadingError(f"more than {MOST_JSON_NODES} values; fewer are read")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
        level = inner


class _Loader(yaml.SafeLoader):
    """Counts while it composes, and says where a value makes no sense."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0
        self._sizes: dict[int, int] = {}
        """Nodes that a finished node stands for, by its identity."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _problem("an alias stands for what it is a part of", mark)
            self._count(self._sizes[id(node)], mark)
            return node
        before = self._nodes
        self._count(1, mark)
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _problem(_too_deep("YAML").problem, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._nodes - before
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        if kind == "int" and len(str(node.value)) > _INT_CHARACTERS:
            raise _problem(f"a number of {len(node.value)} digits", node.start_mark)
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            problem = f"not valid YAML ({quoted(node.value)} is no {kind})"
            raise _problem(problem, node.start_mark) from None
        if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
            raise _problem(f"a number of more than {MOST_DIGITS} digits", node.start_mark)
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """YAML keeps the last of two equal keys; that would lose one silently."""
        if isinstance(node, yaml.MappingNode):
            self._require_unique_keys(node)
        return super().construct_mapping(node, deep=deep)

    def _require_unique_keys(self, node: yaml.MappingNode) -> None:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _problem("a key that is no single value", key_node.start_mark)
            if key in seen:
                problem = f"the key {quoted(key)} appears twice; keep one"
                raise _problem(problem, key_node.start_mark)
            seen.add(key)

    def _count(self, nodes: int, mark: Any) -> None:
        self._nodes += nodes
        if self._nodes > MOST_YAML_NODES:
            raise _problem(f"more than {MOST_YAML_NODES} values, its aliases counted", mark)


def _problem(text: str, mark: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, mark)
