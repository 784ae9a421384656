import pytest

from longlive_trt.console.wording import byte_size, counted, duration, roughly


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (counted(1, "block"), "1 block"),
        (counted(0, "block"), "0 blocks"),
        (counted(2, "entry", "entries"), "2 entries"),
        (byte_size(0), "0.0 kB"),
        (byte_size(99_000), "99.0 kB"),
        (byte_size(202_200), "0.2 MB"),
        (byte_size(12_340_000_000), "12.34 GB"),
        (duration(7.4), "0:07"),
        (duration(3661), "1:01:01"),
        (roughly(59), "less than a minute"),
        (roughly(61), "about 1 minute"),
        (roughly(1200), "about 20 minutes"),
        (roughly(3 * 3600), "about 3 hours"),
    ],
)
def test_numbers_as_a_person_reads_them(said: str, expected: str) -> None:
    assert said == expected
