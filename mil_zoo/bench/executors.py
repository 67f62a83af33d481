"""Where trials run: in this process or in several. An executor schedules; what a trial computes it does not touch."""

from __future__ import annotations

import dataclasses
import logging
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch

from mil_zoo.bench import memory
from mil_zoo.bench.memory import heap_set_aside
from mil_zoo.bench.plan import Plan, TrialPlan
from mil_zoo.bench.processes import cores, fresh_interpreters
from mil_zoo.bench.results import Row, Trial
from mil_zoo.bench.trial import Job, Worker
from mil_zoo.errors import InputError
from mil_zoo.registry import PLUGINS, load_plugin

_LOG = logging.getLogger("mil_zoo")
PROCESS_MIB = 1024  # that a trial's process takes beside the bags: interpreter, libraries, a model
_GUARD = "; a script of your own must be a file and keep its work under if __name__ == '__main__':"
IMPORT_SECONDS = 300.0  # that the import of a plugin may take where trials run
GRACE_SECONDS = 10.0  # until a process that says no more is ended
ATTEMPTS = 3  # of a trial whose process is killed; one that fails by itself would fail again


def jobs_that_fit(plan: Plan) -> int:
    """How many trials of ``plan`` this machine runs at a time: one for every GPU, else as many as have cores to
    themselves and memory for their process, for the bags in memory and for what a step holds of the largest bag.

    A process takes seconds to start, so that each gets two trials at least.
    """
    bags, threads = plan.dataset.bags, plan.suite.threads
    width = 4 * plan.dataset.in_dim / 2**20
    held = sum(size for size, slide in zip(bags.sizes, bags.slides, strict=True) if not slide.on_disk)
    room = memory.available()
    fit = [len(plan.trials) // 2, torch.cuda.device_count() or cores() // threads]
    if room is not None:
        fit.append(int(room / (PROCESS_MIB + width * (held + 6 * max(bags.sizes)))))
    return max(1, min(fit))


class Executor(Protocol):
    """Runs jobs and yields what came of each as it finishes, once its files lie in the job's folder."""

    def run(
        self, jobs: Sequence[Job], on_trial: Callable[[TrialPlan], None], on_epoch: Callable[[TrialPlan, Row], None]
    ) -> Generator[Trial]:
        """Yields one trial a job, in any order. Closing the iterator stops what still runs."""
        ...


class InProcess:
    """One trial after the other, in this process.

    Args:
        plan: whose dataset is open already.
    """

    def __init__(self, plan: Plan) -> None:
        self._worker = Worker(plan.source, plan.dataset)

    def run(
        self, jobs: Sequence[Job], on_trial: Callable[[TrialPlan], None], on_epoch: Callable[[TrialPlan, Row], None]
    ) -> Generator[Trial]:
        """See :class:`Executor`."""
        with heap_set_aside():
            for job in jobs:
                on_trial(job.trial)
                yield self._worker.run(job, lambda row, job=job: on_epoch(job.trial, row))  # type: ignore[misc]


class Processes:
    """Several trials at a time, each in a process of its own, on this machine.

    A process that is killed costs the attempt it was at: the trial is tried again after the others, ``ATTEMPTS`` times
    in all. Where it was importing a plugin, trials that need it fail and the others go on without it. GPUs are dealt to
    the processes in turn. The processes end with this one, however it ends. They are fresh interpreters, so a script of
    one's own that uses them must keep its work under ``if __name__ == "__main__":``.

    Args:
        number: of processes.
        limit: seconds that a trial may take; one that takes longer fails. None for no limit.

    Raises:
        InputError: ``number`` or ``limit`` is not positive.
    """

    def __init__(self, number: int, limit: float | None = None) -> None:
        if number < 1:
            raise InputError(f"--jobs must be at least 1, not {number}")
        if limit is not None and not 0 < limit < math.inf:
            raise InputError(f"--time-limit must be positive and finite, not {limit / 60:g}")
        self._number, self._limit = number, limit

    def run(
        self, jobs: Sequence[Job], on_trial: Callable[[TrialPlan], None], on_epoch: Callable[[TrialPlan, Row], None]
    ) -> Generator[Trial]:
        """See :class:`Executor`."""
        queue = _Queue(jobs)
        gpus = torch.cuda.device_count()
        members = [_Member(i % gpus if gpus else None) for i in range(min(self._number, len(jobs)))]
        try:
            while True:
                for member in members:
                    yield from queue.give(member, on_trial)
                busy = {member.connection: member for member in members if member.job is not None}
                if not busy:
                    return
                ends = [end for member in busy.values() for end, _ in self._ends(member)]
                ready = wait(list(busy), max(0.0, min(ends) - time.monotonic()) if ends else None)
                for connection, member in busy.items():
                    outcome = None
                    if connection in ready:
                        outcome = _heard(member, queue, on_epoch)
                    elif late := [why for end, why in sorted(self._ends(member)) if end <= time.monotonic()]:
                        outcome = queue.ended(member, late[0], again=False)
                    if outcome is not None:
                        yield outcome
        finally:
            for member in members:
                member.stop()

    def _ends(self, member: _Member) -> Iterator[tuple[float, str]]:
        """When the process is to be ended, by the clock ``time.monotonic``, and why."""
        if self._limit is not None:
            yield member.started + self._limit, f"it took longer than --time-limit, {self._limit / 60:g} minutes"
        if member.importing is not None:
            yield member.import_started + IMPORT_SECONDS, f"its import took longer than {IMPORT_SECONDS / 60:g} minutes"


class _Queue:
    """The jobs that wait, each with the number of its attempt, and the plugins that cost a process its life.

    Trials of models that took long go first, and before them those of models of which none has finished yet: a long one
    that began last would leave the other processes idle.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = deque((job, 1) for job in jobs)
        self._seconds: dict[str, float] = {}  # that the last trial of each model took
        self._deadly: dict[Path, str] = {}  # whose import ends a process, or takes longer than a trial may; and why

    def give(self, member: _Member, on_trial: Callable[[TrialPlan], None]) -> Iterator[Trial]:
        """Gives an idle member the next job; yields those before it that fail for want of a plugin."""
        while member.job is None and self._waiting:
            job, attempt = self._next()
            left = without_deadly(job, self._deadly)
            if isinstance(left, Trial):
                yield left
            else:
                member.give(left, attempt)
                on_trial(job.trial)

    def _next(self) -> tuple[Job, int]:
        def urgency(place: int) -> tuple[int, float]:
            job, attempt = self._waiting[place]
            return -attempt, self._seconds.get(job.trial.model.label, math.inf)

        place = max(range(len(self._waiting)), key=urgency)  # the first of several
        chosen = self._waiting[place]
        del self._waiting[place]
        return chosen

    def finished(self, member: _Member) -> None:
        """Takes the job from a member that is done with it, and notes how long it took."""
        assert member.job is not None
        self._seconds[member.job.trial.model.label] = time.monotonic() - member.started
        member.job = None

    def ended(self, member: _Member, reason: str = "", again: bool = True) -> Trial | None:
        """Puts a new process in the place of one that was killed, or is to be; what came of its job, if it is lost.

        Args:
            member: the process.
            reason: why it is ended; "" for what its end says.
            again: whether the job may be tried again.
        """
        assert member.job is not None
        job, attempt, importing = member.job, member.attempt, member.importing
        reason = member.replace(reason)
        if importing is not None:
            self._deadly[importing] = f"plugin {importing} cannot be imported there: {reason}"
            self._waiting.appendleft((job, attempt))
        elif again and attempt < ATTEMPTS:
            self._waiting.append((job, attempt + 1))
        else:
            return job.failed(f"{reason}, in {attempt} attempts" if again else reason)
        return None


def without_deadly(job: Job, deadly: Mapping[Path, str]) -> Job | Trial:
    """The job without plugins whose import ends a process; what came of it where it needs one of them."""
    if reasons := [deadly[plugin] for plugin in job.plugins if plugin in {*deadly} - {*job.spared}]:
        return job.failed(reasons[0])
    return dataclasses.replace(job, plugins=tuple(plugin for plugin in job.plugins if plugin not in deadly))


def _heard(member: _Member, queue: _Queue, on_epoch: Callable[[TrialPlan, Row], None]) -> Trial | None:
    """Takes what a member said, which may be what came of its job, or nothing: it was killed."""
    assert member.job is not None
    try:
        kind, content = member.connection.recv()
    except (EOFError, OSError):  # its end of the pipe is closed
        return queue.ended(member)
    if kind == "trial":
        queue.finished(member)
        outcome: Trial = content
        return outcome
    if kind == "epoch":
        on_epoch(member.job.trial, content)
    elif kind == "importing":
        member.importing, member.import_started = content, time.monotonic()
    elif kind == "said":
        _LOG.info("%s", content)
    else:
        raise content
    return None


class _Member:
    """A worker process and the job it is at."""

    def __init__(self, gpu: int | None) -> None:
        self._gpu = gpu
        self._start()

    def _start(self) -> None:
        context = fresh_interpreters(gpu=self._gpu is not None)
        self.connection, theirs = context.Pipe()
        arguments = (theirs, dict(os.environ), self._gpu)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.attempt, self.started, self.import_started = 0, 0.0, 0.0
        self.importing: Path | None = None

    def give(self, job: Job, attempt: int) -> None:
        self.job, self.attempt, self.started = job, attempt, time.monotonic()
        with suppress(OSError):  # a process that is dead already is noticed where its answer is awaited
            self.connection.send(job)

    def replace(self, reason: str = "") -> str:
        """Starts a new process in place of one that died, or that ends for a ``reason``; says how that died, or this.

        What it has begun to write is removed.
        """
        if not reason:
            self.process.join(GRACE_SECONDS)
            if self.process.is_alive():
                reason = "the process closed its connection and went on; a model must leave open files of others alone"
        if reason:
            self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        self.connection.close()
        if self.job is not None:
            shutil.rmtree(self.job.folder, ignore_errors=True)
        self._start()
        if reason:
            return reason
        if code == -signal.SIGKILL:
            return (
                "the process was killed (signal 9; where nobody did, the machine ran out of memory: try fewer --jobs)"
            )
        return (
            f"the process was killed (signal {-code})" if code < 0 else f"the process ended (exit code {code}{_GUARD})"
        )

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, environment: dict[str, str], gpu: int | None) -> None:
    """The worker process: runs the jobs it receives until it is killed."""
    # Else Numba locks out forks of it, of which there are none, by a semaphore that outlives a process that is killed.
    multiprocessing.set_start_method("spawn", force=True)
    os.environ.clear()
    os.environ.update(environment)  # as it is now: the process that this one is a fork of has an earlier one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpu)
    worker, say = Worker(), _Speaker(connection)
    _LOG.setLevel(logging.INFO)
    _LOG.addHandler(say)
    with heap_set_aside(), suppress(EOFError, BrokenPipeError):  # the parent is gone
        while True:
            say(*_answer(worker, connection.recv(), say))


class _Speaker(logging.Handler):
    """Sends the parent what comes of a job, and what the package logs meanwhile, from any thread."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection, self._one_by_one = connection, threading.Lock()

    def __call__(self, kind: str, content: Any) -> None:
        with self._one_by_one:
            self._connection.send((kind, content))

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a message of the log."""
        self("said", record.getMessage())


def _answer(worker: Worker, job: Job, say: Callable[[str, Any], None]) -> tuple[str, Any]:
    for plugin in job.plugins:
        if plugin not in PLUGINS.files:
            say("importing", plugin)
            with suppress(InputError):  # the trial says it
                load_plugin(plugin)
            say("importing", None)
    try:
        return "trial", worker.run(job, lambda row: say("epoch", row))
    except OSError as error:  # a full disk ends the run: the parent raises it
        return "error", OSError(error.errno, error.strerror or str(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _visible(gpu: int) -> str:
    """The name of the ``gpu``-th of the devices that this process may see."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[gpu] if gpu < len(named) else str(gpu)
