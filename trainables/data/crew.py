"""Does the jobs of a plan in several processes, and tells how far they are."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import Any, Final

from trainables.data.building import do
from trainables.data.errors import DataError
from trainables.data.jobs import Done, Job, Plan
from trainables.data.processes import serve_parent

_TOLD_EVERY_S: Final = 0.2
# For processes that were told to stop, all together: they are at an image, or send a shard off. Then they are ended,
# and have a moment to remove what they have half written.
_PATIENCE_S, _MOMENT_S = 10.0, 3.0


@dataclass(slots=True)
class Progress:
    """How far the jobs are. `images` and `size` (bytes) count what was done now, those `_before` what was there."""

    jobs: int
    done: int = 0
    images: int = 0
    size: int = 0
    images_before: int = 0
    size_before: int = 0
    left_out: list[str] = field(default_factory=list)

    def add(self, done: Done) -> None:
        """A job has ended."""
        self.done += 1
        self.left_out += done.left_out
        if done.before:
            self.images_before += done.images + len(done.left_out)
            self.size_before += done.size


Tell = Callable[[Progress], None]


class _StoppedError(BaseException):
    """This process was told to stop; nothing on its way takes that for a failure to try again."""


def do_all(plan: Plan, *, workers: int, tell: Tell) -> Progress:
    """Do all jobs of a plan; `tell` is called every now and then, and at the end. With one worker, in this process.

    Raises:
        DataError: a mistake of the user's, or a process that was killed.
        OSError: a storage failed.
    """
    progress = Progress(len(plan.jobs))
    if workers <= 1 or len(plan.jobs) <= 1:
        _alone(plan, progress, tell)
    else:
        _together(plan, min(workers, len(plan.jobs)), progress, tell)
    tell(progress)
    return progress


def _alone(plan: Plan, progress: Progress, tell: Tell) -> None:
    def count(images: int, size: int) -> None:
        progress.images += images
        progress.size += size
        tell(progress)

    for job in plan.jobs:
        progress.add(do(plan, job, count))
        tell(progress)


def _together(plan: Plan, workers: int, progress: Progress, tell: Tell) -> None:
    context = multiprocessing.get_context("spawn")
    stop = context.RawValue("b", 0)
    jobs = iter(plan.jobs)
    crew = [_Worker.start(context, plan, stop) for _ in range(workers)]
    try:
        busy = {worker.pipe: worker for worker, job in zip(crew, jobs, strict=False) if worker.give(job)}
        while busy:
            for pipe in multiprocessing.connection.wait([*busy], timeout=_TOLD_EVERY_S):
                worker = busy.pop(pipe)
                progress.add(worker.take())
                if (job := next(jobs, None)) is not None and worker.give(job):
                    busy[worker.pipe] = worker
            progress.images = sum(worker.counted[0] for worker in crew)
            progress.size = sum(worker.counted[1] for worker in crew)
            tell(progress)
    except BaseException:
        stop.value = 1
        raise
    finally:
        for worker in crew:
            worker.pipe.close()
        _end([worker.process for worker in crew])


def _end(processes: list[Any]) -> None:
    for wait_s, end in ((_PATIENCE_S, "terminate"), (_MOMENT_S, "kill")):
        deadline_s = time.monotonic() + wait_s
        for process in processes:
            process.join(max(0.0, deadline_s - time.monotonic()))
        for process in processes:
            if process.is_alive():
                getattr(process, end)()
    for process in processes:
        process.join()


@dataclass(slots=True)
class _Worker:
    """A process that does one job after another, and counts what it has done."""

    process: Any
    pipe: Any
    counted: Any

    @classmethod
    def start(cls, context: Any, plan: Plan, stop: Any) -> _Worker:
        mine, its = context.Pipe()
        counted = context.RawArray("q", 2)
        bare = Plan(plan.storage, (), plan.made_by, plan.classes, plan.shards_at, plan.writes_shards)
        process = context.Process(target=_serve, args=(its, bare, counted, stop), daemon=True)
        # Ctrl-C reaches all processes of a terminal; this one must not meet it, not even while it starts.
        resource_tracker.ensure_running()  # else it is started within, and lets the signal through
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        its.close()
        return cls(process, mine, counted)

    def give(self, job: Job) -> bool:
        try:
            self.pipe.send(job)
        except OSError:
            raise self._killed() from None
        return True

    def take(self) -> Done:
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise self._killed() from None
        if isinstance(answer, BaseException):
            raise answer
        done: Done = answer
        return done

    def _killed(self) -> DataError:
        self.process.join(1)
        return DataError(
            f"a process at work was killed (exit status {self.process.exitcode}), perhaps for want of memory; give the "
            "same command again, it goes on where it was, with fewer --workers"
        )


def _serve(pipe: Any, plan: Plan, counted: Any, stop: Any) -> None:
    """What a worker's process does: jobs, until its pipe is closed."""
    serve_parent()

    def end(*_: object) -> None:
        raise _StoppedError

    signal.signal(signal.SIGTERM, end)

    def count(images: int, size: int) -> None:
        counted[0] += images
        counted[1] += size
        if stop.value:
            raise _StoppedError

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, _StoppedError):
        while True:
            job = pipe.recv()
            try:
                answer: Any = do(plan, job, count)
            except _StoppedError:
                raise
            except (DataError, OSError) as error:
                answer = error
            except Exception:
                answer = RuntimeError(f"while making {job.shard}:\n{traceback.format_exc()}")
            pipe.send(answer)
