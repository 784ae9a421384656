"""Finite videos, made without anybody watching: OpenAI's form of a video API."""

import asyncio
import math
import secrets
import time
from dataclasses import dataclass, field

from longlive_trt.errors import LongLiveError
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.web.bodies import NewVideo, Video, VideoError, VideoStatus
from longlive_trt.serving.web.live import Live
from longlive_trt.serving.web.room import Room
from longlive_trt.serving.web.rooms import Ticket


@dataclass
class Job:
    wish: NewVideo
    seed: int
    frames: int
    id: str = field(default_factory=lambda: f"video_{secrets.token_urlsafe(12)}")
    created_s: float = field(default_factory=time.time)
    completed_s: float | None = None
    room: Room | None = None
    ticket: Ticket | None = None
    error: VideoError | None = None
    task: "asyncio.Task[None] | None" = None


class Jobs:
    """Each takes a slot like a session, when its turn has come."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._jobs: dict[str, Job] = {}

    def begin(self, wish: NewVideo) -> Job:
        seconds, facts = float(wish.seconds), self._live.model.facts
        limits = self._live.settings.limits
        if not 0 < seconds <= limits.video_seconds:
            raise ProblemError(
                "bad_request", f"seconds: from a fraction to {limits.video_seconds:g}."
            )
        if wish.size is not None and wish.size != f"{facts.width}x{facts.height}":
            raise ProblemError(
                "bad_request", f"size: this model makes {facts.width}x{facts.height}."
            )
        running = [job for job in self._jobs.values() if job.completed_s is None]
        if len(running) >= limits.videos:
            raise ProblemError("server_full", "Too many videos are waiting.", retry_after_s=60)
        seed = secrets.randbelow(1 << 32) if wish.seed is None else wish.seed
        job = Job(wish, seed, math.ceil(seconds * float(facts.fps)))
        opener = self._live.opener(
            prompt=wish.prompt,
            seed=seed,
            switch=wish.switch,
            cues=tuple((cue.frame, cue.prompt) for cue in wish.timeline),
            frames=job.frames,
            paced=False,
        )
        job.ticket = self._live.rooms.line_up()
        self._jobs[job.id] = job
        self._forget_oldest(limits.videos)

        async def run() -> None:
            assert job.ticket is not None
            try:
                await job.ticket.turn.wait()
                job.room = self._live.rooms.open(job.ticket, opener)
                job.room.is_job = True
                await job.room.over.wait()
                ended = job.room.ended
                if ended is not None and ended.reason != "finished":
                    job.error = VideoError(code="generation_failed", message=ended.message)
            except (LongLiveError, OSError) as error:
                job.error = VideoError(code="generation_failed", message=str(error))
                self._live.rooms.step_back(job.ticket)
            except ProblemError as problem:
                job.error = VideoError(code=problem.code, message=problem.sentence)
                self._live.rooms.step_back(job.ticket)
            finally:
                job.completed_s = time.time()

        job.task = asyncio.create_task(run())
        return job

    def find(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise ProblemError("not_found", "There is no such video here.")
        return job

    def all(self) -> list[Job]:
        return sorted(self._jobs.values(), key=lambda job: -job.created_s)

    async def delete(self, job: Job) -> None:
        if job.room is not None:
            await job.room.end("stopped")
            job.room.session.discard()
        elif job.ticket is not None and job.completed_s is None:
            self._live.rooms.step_back(job.ticket)
        if job.task is not None:
            job.task.cancel()
        self._jobs.pop(job.id, None)

    def described(self, job: Job) -> Video:
        facts = self._live.model.facts
        made = job.room.session.recording.frames if job.room else 0
        return Video(
            id=job.id,
            model=facts.name,
            status=_status(job),
            progress=100 if _status(job) == "completed" else min(99, 100 * made // job.frames),
            created_at=int(job.created_s),
            completed_at=None if job.completed_s is None else int(job.completed_s),
            seconds=f"{float(job.wish.seconds):g}",
            size=f"{facts.width}x{facts.height}",
            seed=str(job.seed),
            prompt=job.wish.prompt,
            error=job.error,
        )

    def _forget_oldest(self, most: int) -> None:
        done = [job for job in self.all() if job.completed_s is not None]
        for job in done[most:]:
            if job.room is not None:
                job.room.session.discard()
            self._jobs.pop(job.id, None)


def _status(job: Job) -> VideoStatus:
    if job.error is not None:
        return "failed"
    if job.completed_s is not None:
        return "completed"
    return "queued" if job.room is None else "in_progress"
