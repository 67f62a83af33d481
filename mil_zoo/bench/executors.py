"""Where trials run: in this process or in several. An executor schedules; what a trial computes it does not touch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from mil_zoo.bench.memory import heap_set_aside
from mil_zoo.bench.plan import Plan, TrialPlan
from mil_zoo.bench.results import Row, Trial
from mil_zoo.bench.trial import Job, Worker
from mil_zoo.errors import InputError

ATTEMPTS = 3  # of a trial whose process is killed; one that fails by itself would fail again


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
    in all. GPUs are dealt to the processes in turn. The processes end with this one, however it ends. They are fresh
    interpreters, so a script of one's own that uses them must keep its work under ``if __name__ == "__main__":``.

    Args:
        number: of processes.

    Raises:
        InputError: ``number`` is not positive.
    """

    def __init__(self, number: int) -> None:
        if number < 1:
            raise InputError(f"--jobs must be at least 1, not {number}")
        self._number = number

    def run(
        self, jobs: Sequence[Job], on_trial: Callable[[TrialPlan], None], on_epoch: Callable[[TrialPlan, Row], None]
    ) -> Generator[Trial]:
        """See :class:`Executor`."""
        waiting = deque((job, 1) for job in jobs)
        gpus = torch.cuda.device_count()
        members = [_Member(i % gpus if gpus else None) for i in range(min(self._number, len(jobs)))]
        try:
            while True:
                for member in members:
                    if member.job is None and waiting:
                        job, attempt = waiting.popleft()
                        member.give(job, attempt)
                        on_trial(job.trial)
                busy = {member.connection: member for member in members if member.job is not None}
                if not busy:
                    return
                for connection in wait(list(busy)):
                    member = busy[connection]  # type: ignore[index]
                    assert member.job is not None
                    job, attempt = member.job, member.attempt
                    try:
                        kind, content = member.connection.recv()
                    except (EOFError, OSError):  # killed: its end of the pipe is closed
                        reason = member.replace()
                        if attempt < ATTEMPTS:
                            waiting.append((job, attempt + 1))
                        else:
                            yield job.failed(f"{reason}, in {attempt} attempts")
                        continue
                    if kind == "epoch":
                        on_epoch(job.trial, content)
                    elif kind == "trial":
                        member.job = None
                        yield content
                    else:
                        raise content
        finally:
            for member in members:
                member.stop()


class _Member:
    """A worker process and the job it is at."""

    def __init__(self, gpu: int | None) -> None:
        self._gpu = gpu
        self._start()

    def _start(self) -> None:
        # A fresh interpreter: torch's and Numba's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self._gpu), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.attempt = 0

    def give(self, job: Job, attempt: int) -> None:
        self.job, self.attempt = job, attempt
        with suppress(OSError):  # a process that is dead already is noticed where its answer is awaited
            self.connection.send(job)

    def replace(self) -> str:
        """Starts a new process in place of a dead one and says how that died."""
        self.process.join()
        code = self.process.exitcode or 0
        self.connection.close()
        self._start()
        if code == -signal.SIGKILL:
            return (
                "the process was killed (signal 9; where nobody did, the machine ran out of memory: try fewer --jobs)"
            )
        return f"the process was killed (signal {-code})" if code < 0 else f"the process ended (exit code {code})"

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, gpu: int | None) -> None:
    """The worker process: runs the jobs it receives until it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpu)
    worker = Worker()
    with heap_set_aside(), suppress(EOFError, BrokenPipeError):  # the parent is gone
        while True:
            connection.send(_answer(worker, connection))


def _answer(worker: Worker, connection: Connection) -> tuple[str, Any]:
    job: Job = connection.recv()
    try:
        return "trial", worker.run(job, lambda row: connection.send(("epoch", row)))
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
