"""Bundles of hosts: fetched once for each machine, and the right one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from longlive_trt import fleet
from longlive_trt.engines.bundles.bundle import read_manifest
from longlive_trt.engines.bundles.transfer import push
from longlive_trt.errors import LongLiveError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_hosts_of_a_machine_fetch_a_bundle_once(
    video_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/catalog"
    push(video_bundle, url)
    fetched = []
    pull = fleet.pull

    def counted(*arguments: object) -> object:
        pulled = pull(*arguments)  # type: ignore[arg-type]
        fetched.append(pulled.was_current)
        return pulled

    monkeypatch.setattr(fleet, "pull", counted)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(fleet.bundle_here, [url] * 3))
    (folder,) = folders
    assert sorted(fetched) == [False, True, True]
    assert read_manifest(folder).key == read_manifest(video_bundle).key


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such bundle"):
        fleet.bundle_here(str(tmp_path / "none"))
    with pytest.raises(LongLiveError, match="none"):
        fleet.bundle_here(f"file://{tmp_path}/none")


def test_a_fleet_knows_the_key_of_a_bundle_that_is_here(video_bundle: Path) -> None:
    here = fleet.Arguments(store="states", bundle=str(video_bundle))
    assert fleet.fleet_of(here).bundle_key == read_manifest(video_bundle).key
    assert fleet.fleet_of(fleet.Arguments(store="s", bundle="s3://a/b")).bundle_key is None
