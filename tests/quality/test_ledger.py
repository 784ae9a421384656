"""What was measured is kept a line a video, whatever ends a run."""

from pathlib import Path

from longlive_trt.quality.ledger import Ledger

LINE = {"kind": "prompt", "number": 0, "own": {"motion": [1.5]}}
NEXT = {"kind": "prompt", "number": 1, "own": {"motion": [2.5]}}


def ledger(folder: Path, key: str = "k") -> Ledger:
    return Ledger(folder / "report", key)


def test_a_later_run_goes_on(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    first.begin()
    first.add(LINE)
    second = ledger(tmp_path)
    assert second.lines == {("prompt", 0): LINE} and second.has("prompt", 0)
    second.begin()
    second.add(NEXT)
    assert list(ledger(tmp_path).lines.values()) == [LINE, NEXT]
    second.discard()
    assert not list(tmp_path.iterdir())


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    first.begin()
    first.add(LINE)
    other = ledger(tmp_path, "another")
    assert not other.lines
    other.begin()
    assert not ledger(tmp_path).lines


def test_half_a_line_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    first.begin()
    first.add(LINE)
    with first.path.open("a") as file:
        file.write('{"kind": "prompt", "num')
    second = ledger(tmp_path)
    assert list(second.lines.values()) == [LINE]
    second.begin()
    second.add(NEXT)
    assert list(ledger(tmp_path).lines.values()) == [LINE, NEXT]


def test_a_file_of_anything_else_is_begun_anew(tmp_path: Path) -> None:
    ledger(tmp_path).path.write_bytes(b"\xff\xfe\n[]\n")
    assert not ledger(tmp_path).lines
