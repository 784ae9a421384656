"""Timing caches: one file for a compiler on a GPU, added to by every build."""

from pathlib import Path

from longlive_trt.engines.bundles.bundle import EngineKind
from longlive_trt.engines.trt import timing_cache

KIND = EngineKind("tensorrt", "11.4.0.106", "sm90")


class FakeCache:
    def __init__(self, data: bytes) -> None:
        self.entries = set(data.split())

    def combine(self, other: "FakeCache", _ignore_mismatch: bool) -> bool:
        self.entries |= other.entries
        return True

    def serialize(self) -> bytes:
        return b" ".join(sorted(self.entries))


class FakeConfig:
    """Refuses what it did not write, as TensorRT refuses other versions' caches."""

    def __init__(self) -> None:
        self.cache = FakeCache(b"")

    def create_timing_cache(self, data: bytes) -> FakeCache | None:
        return None if b"foreign" in data else FakeCache(data)

    def set_timing_cache(self, cache: FakeCache, _ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeCache:
        return self.cache


def build(path: Path, *measured: bytes) -> FakeConfig:
    config = FakeConfig()
    timing_cache.load(config, path)
    config.cache.entries |= set(measured)
    timing_cache.save(config, path)
    return config


def test_the_next_build_starts_from_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "a.timing"
    build(path, b"one")
    assert build(path, b"two").cache.entries == {b"one", b"two"}


def test_builds_that_run_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.timing"
    first, second = FakeConfig(), FakeConfig()
    for config, entry in ((first, b"one"), (second, b"two")):
        timing_cache.load(config, path)
        config.cache.entries.add(entry)
    timing_cache.save(first, path)
    timing_cache.save(second, path)
    assert FakeCache(path.read_bytes()).entries == {b"one", b"two"}


def test_a_cache_that_the_compiler_refuses_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.timing"
    path.write_bytes(b"foreign")
    build(path, b"one")
    assert path.read_bytes() == b"one"


def test_the_file_names_all_that_a_cache_depends_on(tmp_path: Path) -> None:
    path = timing_cache.cache_path(tmp_path, KIND, "NVIDIA H100 80GB HBM3")
    assert path.name == "tensorrt-11.4.0.106-sm90-NVIDIA-H100-80GB-HBM3.timing"
    assert path != timing_cache.cache_path(tmp_path, KIND, "NVIDIA H200")
