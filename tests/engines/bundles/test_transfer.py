"""Pushing and pulling: folders, memory, and a web server on this machine that misbehaves."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from longlive_trt.engines.bundles import stores
from longlive_trt.engines.bundles.archive import pack
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.bundles.catalog import CatalogEntry, add_entry, read_catalog
from longlive_trt.engines.bundles.stores import Store
from longlive_trt.engines.bundles.transfer import pull, push
from longlive_trt.errors import BundleError, LongLiveError, OutputError, UsageError

MakeBundle = Callable[..., Path]

ROOT = Path(__file__).resolve().parents[3]
PIECE_BYTES = 1 << 14


@dataclass
class Web:
    """Serves a folder over HTTP, with faults on request."""

    folder: Path
    url: str = ""
    has_ranges: bool = True
    cut_after: int | None = None
    """End every body after so many bytes, as a lost connection does."""
    stall_after: int | None = None
    status: dict[str, list[int]] = field(default_factory=dict)
    """What to answer instead, by file name, once each."""
    log: list[tuple[str, str | None]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def requests_for(self, name: str) -> list[str | None]:
        return [range_ for path, range_ in self.log if path.endswith(name)]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    served = Web(tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    yield served
    served.released.set()
    server.shutdown()
    server.server_close()


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.log.append((self.path, self.headers.get("Range")))
            faults = web.status.get(Path(self.path).name)
            if faults:
                self.send_error(faults.pop(0))
            elif (path := web.folder / self.path.lstrip("/")).is_file():
                self._send(path.read_bytes())
            else:
                self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def _send(self, data: bytes) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(wanted[1]) if wanted and web.has_ranges else 0
            if start and start >= len(data):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if self.command == "GET":
                self._send_body(data[start:])

        def _send_body(self, data: bytes) -> None:
            for start in range(0, len(data), PIECE_BYTES):
                self.wfile.write(data[start : start + PIECE_BYTES])
                sent = start + PIECE_BYTES
                if web.cut_after is not None and sent >= web.cut_after:
                    self.close_connection = True
                    return
                if web.stall_after is not None and len(data) > sent >= web.stall_after:
                    self.wfile.flush()
                    web.stalled.set()
                    web.released.wait(30)
                    return

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


@pytest.fixture
def bundle(tmp_path: Path, fake_bundle: MakeBundle) -> Path:
    return fake_bundle(tmp_path / "b")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://catalog-root"
    fsspec.filesystem("memory").store.clear()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
@pytest.mark.parametrize("as_archive", [False, True])
def test_there_and_back(
    kind: str, as_archive: bool, bundle: Path, tmp_path: Path, memory: str
) -> None:
    url = {"path": str(tmp_path / "s"), "file": f"file://{tmp_path}/s", "memory": memory}[kind]
    source = bundle
    if as_archive:
        source = tmp_path / "b.tar.zst"
        pack(bundle, source)
    entry, address = push(source, url)
    for number, from_url in enumerate((address, url)):
        out = tmp_path / f"out{number}"
        pulled = pull(from_url, out)
        assert contents(out) == contents(bundle)
        assert pulled.fetched_bytes == entry.bytes
    assert hidden(tmp_path) == []


def test_over_http(bundle: Path, web: Web, tmp_path: Path) -> None:
    push(bundle, str(web.folder))
    pull(web.url, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)


def test_pushing_again_sends_nothing(bundle: Path, memory: str) -> None:
    entry, _ = push(bundle, memory)
    stored = fsspec.filesystem("memory").store
    marks = {name: id(file) for name, file in stored.items() if f"/{entry.path}/" in name}
    push(bundle, memory)
    assert {name: id(file) for name, file in stored.items() if name in marks} == marks
    assert len(marks) == 5


def test_pulling_again_changes_nothing(bundle: Path, tmp_path: Path) -> None:
    push(bundle, str(tmp_path / "s"))
    out = tmp_path / "out"
    assert not pull(str(tmp_path / "s"), out).was_current
    again = pull(str(tmp_path / "s"), out)
    assert again.was_current
    (out / "step.onnx").write_bytes(b"altered")
    assert not pull(str(tmp_path / "s"), out).was_current
    assert contents(out) == contents(bundle)


def test_an_altered_bundle_is_not_pushed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "step.onnx").write_bytes(b"x" * 1500)
    with pytest.raises(BundleError, match="altered"):
        push(bundle, str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["step.weights", "manifest.json", "kernels/attention.ptx"])
def test_what_was_altered_on_the_way_is_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    _, address = push(bundle, str(tmp_path / "s"))
    path = Path(address) / name
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"?")
    with pytest.raises(BundleError, match=path.name):
        pull(address, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path.write_bytes(good)
    pull(address, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)


def test_another_bundle_than_the_catalog_lists_is_refused(
    bundle: Path, tmp_path: Path, fake_bundle: MakeBundle
) -> None:
    _, address = push(bundle, str(tmp_path / "s"))
    other = fake_bundle(tmp_path / "other", {"step.onnx": b"other"})
    shutil.copytree(other, address, dirs_exist_ok=True)
    with pytest.raises(BundleError, match=r"index\.json lists"):
        pull(str(tmp_path / "s"), tmp_path / "out")


def test_lost_connections_are_taken_up_where_they_broke(
    web: Web, tmp_path: Path, fake_bundle: MakeBundle
) -> None:
    large = fake_bundle(tmp_path / "large", {"step.weights": bytes(range(256)) * 12_000})
    push(large, str(web.folder))
    web.cut_after = 1 << 20
    # In a folder of its own, where nothing is there to share with.
    out = tmp_path / "here" / "out"
    pull(web.url, out)
    assert contents(out) == contents(large)
    first, *later = web.requests_for("step.weights")
    assert first is None
    starts = [int(str(range_).removeprefix("bytes=").rstrip("-")) for range_ in later]
    # What the client still had in its buffer when the connection broke is lost; the rest is kept.
    assert starts == sorted(starts)
    assert starts[0] > 0


def test_a_server_without_ranges_serves_too(bundle: Path, web: Web, tmp_path: Path) -> None:
    push(bundle, str(web.folder))
    part = tmp_path / ".out.pull" / "parts"
    part.mkdir(parents=True)
    sha256 = open_bundle(bundle).manifest.files["step.weights"].sha256
    (part / sha256).write_bytes((bundle / "step.weights").read_bytes()[:100_000])
    web.has_ranges = False
    pulled = pull(web.url, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)
    assert pulled.kept_bytes == 100_000


def test_a_damaged_part_is_fetched_anew(bundle: Path, web: Web, tmp_path: Path) -> None:
    push(bundle, str(web.folder))
    part = tmp_path / ".out.pull" / "parts"
    part.mkdir(parents=True)
    sha256 = open_bundle(bundle).manifest.files["step.weights"].sha256
    (part / sha256).write_bytes(b"?" * 100_000)
    pull(web.url, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)
    assert web.requests_for("step.weights") == ["bytes=100000-", None]


def test_leftovers_of_another_bundle_stay_out(
    bundle: Path, tmp_path: Path, fake_bundle: MakeBundle
) -> None:
    push(bundle, str(tmp_path / "s"))
    fake_bundle(tmp_path / ".out.pull" / "bundle", {"old.onnx": b"old", "step.onnx": b"old"})
    pull(str(tmp_path / "s"), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_passing_trouble_is_waited_for(status: int, bundle: Path, web: Web, tmp_path: Path) -> None:
    push(bundle, str(web.folder))
    web.status = {"step.onnx": [status, status], "index.json": [status]}
    pull(web.url, tmp_path / "out")
    assert len(web.requests_for("step.onnx")) == 3


@pytest.mark.parametrize(
    ("status", "requests", "advice"),
    [(503, 4, "answered 503"), (403, 1, "sign in"), (404, 1, "missing from the bundle")],
)
def test_lasting_trouble_ends_the_pull(
    status: int, requests: int, advice: str, bundle: Path, web: Web, tmp_path: Path
) -> None:
    push(bundle, str(web.folder))
    web.status = {"step.onnx": [status] * 9}
    with pytest.raises(BundleError, match=advice):
        pull(web.url, tmp_path / "out")
    assert len(web.requests_for("step.onnx")) == requests
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_too_short_there(bundle: Path, web: Web, tmp_path: Path) -> None:
    _, address = push(bundle, str(web.folder))
    path = Path(address) / "step.weights"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BundleError, match="199990 bytes, expected 200000"):
        pull(web.url, tmp_path / "out")


PULL = """
import sys
from pathlib import Path
from longlive_trt.engines.bundles.transfer import pull
pull(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("as_archive", [False, True])
def test_a_killed_pull_goes_on_from_what_it_has(
    as_archive: bool, bundle: Path, web: Web, tmp_path: Path
) -> None:
    source = bundle
    if as_archive:
        source = tmp_path / "b.tar.zst"
        pack(bundle, source)
    entry, _ = push(source, str(web.folder))
    web.stall_after = 4 * PIECE_BYTES
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", PULL, web.url, str(out)], cwd=ROOT)
    assert web.stalled.wait(20)
    staged = tmp_path / ".out.pull"
    wait_for(lambda: stored_bytes(staged) >= 3 * PIECE_BYTES)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    web.stall_after = None
    assert not out.exists()
    kept = stored_bytes(staged)
    pulled = pull(web.url, out)
    assert contents(out) == contents(bundle)
    assert pulled.kept_bytes == kept > 0
    assert pulled.fetched_bytes == entry.bytes - kept
    assert hidden(tmp_path) == []


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def wait_for(condition: Callable[[], bool]) -> None:
    moment = threading.Event()
    for _ in range(400):
        if condition():
            return
        moment.wait(0.05)
    raise AssertionError("it never came")


def test_two_pulls_to_one_place(bundle: Path, web: Web, tmp_path: Path) -> None:
    push(bundle, str(web.folder))
    web.stall_after = PIECE_BYTES
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", PULL, web.url, str(out)], cwd=ROOT)
    try:
        assert web.stalled.wait(20)
        wait_for(lambda: stored_bytes(tmp_path / ".out.pull") > 0)
        with pytest.raises(UsageError, match="another pull"):
            pull(web.url, out)
    finally:
        process.kill()
        process.wait(timeout=10)


def test_pushes_at_the_same_time_are_all_listed(tmp_path: Path, fake_bundle: MakeBundle) -> None:
    url = str(tmp_path / "s")
    bundles = [
        fake_bundle(tmp_path / f"b{number}", {"step.onnx": bytes([number])}) for number in range(6)
    ]
    with ThreadPoolExecutor(6) as pool:
        entries = list(pool.map(lambda path: push(path, url)[0], bundles))
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    assert {item["path"] for item in index["bundles"]} == {entry.path for entry in entries}
    assert len(index["bundles"]) == 6


def test_a_push_repairs_the_index_of_a_killed_one(tmp_path: Path, fake_bundle: MakeBundle) -> None:
    url = str(tmp_path / "s")
    first, _ = push(fake_bundle(tmp_path / "b0", {"step.onnx": b"0"}), url)
    stale = (tmp_path / "s" / "index.json").read_bytes()
    second, _ = push(fake_bundle(tmp_path / "b1", {"step.onnx": b"1"}), url)
    (tmp_path / "s" / "index.json").write_bytes(stale)
    assert {entry.path for entry in read_catalog(Store(url)) or []} == {first.path, second.path}
    add_entry(Store(url), first)
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    assert len(index["bundles"]) == 2


def test_an_index_that_never_settles_is_an_error(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, url = push(bundle, str(tmp_path / "s"))[0], str(tmp_path / "s")
    read = Store.read
    empty = b'{"format": 1, "bundles": []}'
    monkeypatch.setattr(
        Store, "read", lambda *args: empty if args[1] == "index.json" else read(*args)
    )
    with pytest.raises(OutputError, match="keep changing it"):
        add_entry(Store(url), entry)


def choose_last(entries: list[CatalogEntry]) -> CatalogEntry:
    return entries[-1]


def test_a_catalog_of_several(tmp_path: Path, fake_bundle: MakeBundle) -> None:
    url = str(tmp_path / "s")
    paths = [fake_bundle(tmp_path / f"b{number}", {"a": bytes([number])}) for number in range(2)]
    entries = [push(path, url)[0] for path in paths]
    with pytest.raises(UsageError, match="add --auto") as caught:
        pull(url, tmp_path / "out")
    assert all(f"{url}/{entry.path}" in str(caught.value) for entry in entries)
    pull(url, tmp_path / "out", choose_last)
    last = sorted(entries, key=lambda entry: entry.path)[-1]
    assert contents(tmp_path / "out") == contents(paths[entries.index(last)])


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"format": 2, "bundles": []}', '{"format": 1, "bundles": [{}]}',
        '{"format": 1, "bundles": 3}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_broken_catalog(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(BundleError, match=r"catalog|entry"):
        pull(str(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("path", ["../b", "/etc", "a/b", "", ".hidden", "https://elsewhere"])
def test_a_catalog_leads_nowhere_else(
    path: str, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound = push(bundle, str(tmp_path / "s"))[0].path
    index = tmp_path / "s" / "index.json"
    values = json.loads(index.read_text())
    values["bundles"][0]["path"] = path
    index.write_text(json.dumps(values))
    (entry,) = read_catalog(Store(str(tmp_path / "s"))) or ()
    assert (entry.path, "is left out" in caplog.text) == (sound, True)
    shutil.rmtree(tmp_path / "s" / "catalog")
    with pytest.raises(BundleError, match="no entry of its catalog can be read"):
        pull(str(tmp_path / "s"), tmp_path / "out")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nothing/here", "check the address"),
        ("nothing/here.tar.zst", "no such archive"),
        ("gs://bucket/x", r"\[ship\]"),
        ("nonsense://x", "not an address"),
        ("http://127.0.0.1:9/x", "127.0.0.1"),
        ("https://host/x?token=1", "no files below it"),
    ],
)
def test_addresses_that_lead_nowhere(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LongLiveError, match=message):
        pull(url, tmp_path / "out")
    assert list(tmp_path.iterdir()) in ([], [tmp_path / ".out.pull"])


def test_http_cannot_be_pushed_to(bundle: Path) -> None:
    with pytest.raises(UsageError, match="nothing can be pushed over HTTP"):
        push(bundle, "https://127.0.0.1/x")


def test_a_hub_is_reached_through_its_own_file_system() -> None:
    pytest.importorskip("huggingface_hub")
    store = Store("hf://somebody/something")
    assert type(store._system).__name__ == "HfFileSystem"
    store.require_writable()


# ---- what is told ------------------------------------------------------------------------------


class Told:
    """Every report of a run."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}
        self.totals: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        self.stages.setdefault(what.partition(" ")[0], []).append(done)
        self.totals[what.partition(" ")[0]] = total

    def require_bytes(self, *stages: str, size: int) -> None:
        """Each stage goes up from nothing, piece by piece, to all bytes."""
        assert set(stages) <= self.stages.keys()
        for stage in stages:
            steps = self.stages[stage]
            assert steps == sorted(steps) and steps[0] == 0
            assert steps[-1] == self.totals[stage] == size, stage


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_bytes_are_told_as_they_are_moved(
    place: str, bundle: Path, tmp_path: Path, memory: str
) -> None:
    url = memory if place == "memory" else str(tmp_path / "store")
    size = sum(len(data) for name, data in contents(bundle).items() if name != "manifest.json")
    pushing, pulling = Told(), Told()
    _, address = push(bundle, url, pushing)
    pull(address, tmp_path / "out", report=pulling)
    pushing.require_bytes("checking", "pushing", size=size)
    pulling.require_bytes("pulling", size=size)
    again = Told()
    push(bundle, url, again)
    again.require_bytes("pushing", size=size)


def test_bytes_of_an_archive_are_told(bundle: Path, tmp_path: Path) -> None:
    archive, packing, pulling = tmp_path / "a.tar.zst", Told(), Told()
    size = sum(len(data) for name, data in contents(bundle).items() if name != "manifest.json")
    pack(bundle, archive, packing)
    _, address = push(archive, str(tmp_path / "store"))
    pull(address, tmp_path / "out", report=pulling)
    packing.require_bytes("packing", size=size)
    pulling.require_bytes("pulling", "checking", size=archive.stat().st_size)
    pulling.require_bytes("unpacking", size=size)


def test_a_pull_that_goes_on_counts_what_it_has(bundle: Path, tmp_path: Path) -> None:
    _, address = push(bundle, str(tmp_path / "store"))
    name, data = "step.weights", contents(bundle)["step.weights"]
    entry = open_bundle(bundle).manifest.files[name]
    parts = tmp_path / ".out.pull" / "parts"
    parts.mkdir(parents=True)
    (parts / entry.sha256).write_bytes(data[:150_000])
    told = Told()
    pulled = pull(address, tmp_path / "out", report=told)
    assert pulled.kept_bytes == 150_000
    assert told.stages["pulling"][-1] == told.totals["pulling"]


def test_a_retry_is_one_line_whatever_a_library_says(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, address = push(bundle, str(tmp_path / "store"))
    faults = [ConnectionError("Cannot connect\n  Traceback\n" + "y" * 900)]
    original = Store.chunks

    def failing(store: Store, name: str, start: int = 0) -> Iterator[bytes]:
        if faults:
            raise faults.pop()
        return original(store, name, start)

    monkeypatch.setattr(Store, "chunks", failing)
    pull(address, tmp_path / "out")
    (record,) = caplog.records
    said = record.getMessage()
    assert "Cannot connect Traceback yyy" in said and said.endswith("trying again")
    assert "\n" not in said and len(said) < 500
