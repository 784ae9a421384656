"""How soon a live video answers: from Enter to the first changed picture at the socket.

    python -m benchmarks.live BUNDLE --out docs/results/live_h200.json

Starts a server, and for each number of sessions (1 and 2) and both ways (with drafts and without)
lets every session send prompts at random moments. Beside the answers' times, at the socket and on
a screen that shows pictures at the video's rate, it says whether blocks came in time for that, and
how many of those that did not were answers.
"""

import json
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from benchmarks.harness import command, cpu_name, parser, percentiles, write_report
from longlive_trt.engines.loader import DEVICES
from longlive_trt.plugins.cuda.nvml import open_gpu
from longlive_trt.serving.engine import load_model
from longlive_trt.serving.protocol import Picture
from longlive_trt.serving.server import bind, make_server
from longlive_trt.serving.settings import Limits, Settings

WORDS = ("red car", "blue boat", "steam train", "white bird", "green balloon")
PLACES = ("in the desert", "at sea", "in the mountains", "in the city", "in the fog")


@dataclass
class Run:
    """What one session saw."""

    answers_ms: list[float] = field(default_factory=list)
    shown_ms: list[float] = field(default_factory=list)
    """Until an answer's turn on screen has come, too."""
    speculated: int = 0
    late_ms: list[float] = field(default_factory=list)
    """How late each block's first picture came for its turn on screen; 0 if in time."""
    late_answers: int = 0
    """Of those that were late."""


class Viewer:
    def __init__(self, port: int, seed: int, *, drafts: bool) -> None:
        self._address = f"ws://localhost:{port}/v1/realtime/video"
        self._chance, self._drafts = random.Random(seed), drafts  # noqa: S311
        self.run = Run()
        self._newest: Picture | None = None
        self._answer_frame: int | None = None
        """Of the prompt that was sent last, once the server has said where it takes effect."""
        self._clock: float | None = None
        self._turn = 0.0
        """When the newest picture is to be on screen."""

    def watch(self, prompts: int) -> None:
        with connect(self._address, compression=None, max_size=None) as socket:
            self._socket = socket
            start = {"prompt": self._prompt(), "format": "h264", "seed": 1}
            self._send("session.start", **start)
            self._for(5.0)
            for _ in range(prompts):
                self._ask()
            self._send("session.stop")

    def _ask(self) -> None:
        prompt = self._prompt()
        if self._drafts:
            self._send("prompt.draft", prompt=prompt)
        self._for(1.5 + self._chance.random())
        begun, self._answer_frame = time.perf_counter(), None
        self._send("session.interaction", prompt=prompt)
        while not self._is_answered:
            self._take(10.0)
        self._answer_frame = None
        self.run.answers_ms.append((time.perf_counter() - begun) * 1000)
        self.run.shown_ms.append((self._turn - begun) * 1000)
        self._for(1.0)

    @property
    def _is_answered(self) -> bool:
        """Nothing older comes from that picture on: a cut takes it back before it is named."""
        frame, newest = self._answer_frame, self._newest
        return frame is not None and newest is not None and newest.frame >= frame

    def _prompt(self) -> str:
        return f"a {self._chance.choice(WORDS)} {self._chance.choice(PLACES)}, {time.time():.6f}"

    def _send(self, kind: str, **values: Any) -> None:
        self._socket.send(json.dumps({"type": kind, **values}))

    def _for(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            try:
                self._take(left)
            except TimeoutError:
                return

    def _take(self, timeout: float) -> None:
        data = self._socket.recv(timeout=timeout)
        if isinstance(data, str):
            message = json.loads(data)
            if message["type"] == "error":
                raise RuntimeError(message["message"])
            if message["type"] == "session.interaction.queued":
                self.run.speculated += message["speculated"]
                self._newest, self._answer_frame = None, message["takes_effect"]["frame"]
            return
        picture = Picture.unpack(data)
        self._newest = picture
        now, seconds = time.perf_counter(), picture.pts_us / 1e6
        if self._clock is None:
            self._clock = now - seconds
        if picture.flags & 1:
            late = max(0.0, now - (self._clock + seconds))
            self.run.late_ms.append(late * 1000)
            self.run.late_answers += self._is_answered and late > 0
            # What was waited through is not made up for.
            self._clock += late
        self._turn = self._clock + seconds


def measured(port: int, sessions: int, prompts: int, *, drafts: bool) -> dict[str, Any]:
    viewers = [Viewer(port, seed, drafts=drafts) for seed in range(sessions)]
    threads = [threading.Thread(target=one.watch, args=(prompts,)) for one in viewers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = [ms for one in viewers for ms in one.run.answers_ms]
    late = [ms for one in viewers for ms in one.run.late_ms]
    return {
        "sessions": sessions,
        "drafts": drafts,
        "prompts": len(answers),
        "speculated": sum(one.run.speculated for one in viewers),
        "answer_ms": percentiles(answers, (50, 95, 99), 1),
        "on_screen_ms": percentiles(
            [ms for one in viewers for ms in one.run.shown_ms], (50, 95, 99), 1
        ),
        "blocks": len(late),
        "blocks_in_time": sum(ms == 0 for ms in late),
        "late_answers": sum(one.run.late_answers for one in viewers),
        "latest_ms": round(max(late), 1),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("bundle", type=Path)
    options.add_argument("--device", choices=DEVICES, default="auto")
    options.add_argument("--prompts", type=int, default=50, help="of each session")
    options.add_argument("--sessions", type=int, nargs="+", default=[1, 2], help="at a time")
    chosen = options.parse_args()
    settings = Settings(port=0, sessions=max(chosen.sessions), limits=Limits(cues=10_000))
    listening = bind(settings)
    server = make_server(settings, lambda: load_model(chosen.bundle, chosen.device))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    live = server._live
    while not live.is_ready:
        if live.failure:
            raise SystemExit(live.failure)
        time.sleep(0.1)
    port = listening.getsockname()[1]
    results: list[dict[str, Any]] = []
    gpu = open_gpu() if chosen.device != "cpu" else None
    record = {
        "command": command(),
        "machine": gpu.name if gpu else cpu_name(),
        "model": live.model.facts.name,
        "bundle_key": live.model.facts.bundle_key,
        "results": results,
    }
    for sessions in chosen.sessions:
        for drafts in (False, True):
            results.append(measured(port, sessions, chosen.prompts, drafts=drafts))
            print(json.dumps(results[-1]), file=sys.stderr)
            # What was measured is kept, should the rest be cut off.
            write_report(record, chosen.out)
    server.should_exit = True
    thread.join()
    listening.close()
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
