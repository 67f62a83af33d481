"""Trials as tasks of Ray, on a cluster that runs already or on one started on this machine."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mil_zoo.bench import executors
from mil_zoo.bench.executors import ATTEMPTS, without_deadly
from mil_zoo.bench.plan import TrialPlan
from mil_zoo.bench.results import Row, Trial
from mil_zoo.bench.run_directory import empty_folder
from mil_zoo.bench.trial import Job, Worker
from mil_zoo.errors import InputError
from mil_zoo.registry import load_plugin


class OnRay:
    """Several trials at a time, each a task of Ray.

    A task whose process or node is lost is tried again, ``ATTEMPTS`` times in all. The files of a trial come back
    through Ray; data and plugins are read where the task runs, under the same paths, by the same version of mil-zoo.
    One that is started anew continues from its checkpoint where the run directory is there too.

    Args:
        address: ``host:port`` or ``ray://host:port`` of a cluster, or "auto"; None starts one on this machine.
        jobs: trials at a time; None for as many as Ray has room for.
        cpus: CPUs that Ray reserves for a trial; None for the plan's threads.
        gpus: GPUs that Ray reserves for a trial; 0.25 lets four trials share one.

    Raises:
        InputError: Ray is not installed, or nothing answers at ``address``.
    """

    def __init__(
        self, address: str | None = None, jobs: int | None = None, cpus: float | None = None, gpus: float = 0.0
    ) -> None:
        if jobs is not None and jobs < 1:
            raise InputError(f"--jobs must be at least 1, not {jobs}")
        self._jobs, self._cpus, self._gpus = jobs, cpus, gpus
        self._address = address
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports home unless it is told not to
        # Without this, a trial that reserves no GPU would not see any, and run on the CPU without a word.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise InputError("--executor ray needs Ray: pip install 'mil-zoo[ray]'") from None
        self._ray = ray

    def run(
        self, jobs: Sequence[Job], on_trial: Callable[[TrialPlan], None], on_epoch: Callable[[TrialPlan, Row], None]
    ) -> Generator[Trial]:
        """See :class:`mil_zoo.bench.executors.Executor`; epochs are not told."""
        if not jobs:
            return
        ray = self._ray
        self._connect()
        run = ray.remote(**self._resources(jobs[0].suite.threads), max_retries=ATTEMPTS - 1)(_run)
        deadly = self._deadly(jobs)
        waiting = deque(jobs)
        running: dict[Any, Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < (self._jobs or len(jobs)):
                    job = without_deadly(waiting.popleft(), deadly)
                    if isinstance(job, Trial):
                        yield job
                        continue
                    running[run.remote(job)] = job
                    on_trial(job.trial)
                done, _ = ray.wait(list(running)) if running else ([], [])
                for task in done:
                    yield self._collect(task, running.pop(task))
        finally:
            for task in running:
                ray.cancel(task, force=True)

    def _deadly(self, jobs: Sequence[Job]) -> dict[Path, str]:
        """The plugins whose import ends a process, or hangs, and in which words: each is tried in a task of its own."""
        found: dict[Path, str] = {}
        plugins = list(dict.fromkeys(plugin for job in jobs for plugin in job.plugins))
        for i, plugin in enumerate(plugins):
            before = [other for other in plugins[:i] if other not in found]
            task = self._ray.remote(num_cpus=0, max_retries=0)(_import).remote([*before, plugin])
            try:
                self._ray.get(task, timeout=executors.IMPORT_SECONDS)
            except self._ray.exceptions.GetTimeoutError:
                self._ray.cancel(task, force=True)
                long = f"its import took longer than {executors.IMPORT_SECONDS / 60:g} minutes"
                found[plugin] = f"plugin {plugin} cannot be imported there: {long}"
            except self._ray.exceptions.RayTaskError:  # it says itself what it lacks, and so does each trial
                continue
            except self._ray.exceptions.RayError as error:
                found[plugin] = f"plugin {plugin} cannot be imported there: {_first_line(error)}"
        return found

    def _connect(self) -> None:
        """Joins or starts a cluster, for the rest of this process; one that was joined already is used."""
        if self._ray.is_initialized():
            return
        if self._address not in (None, "auto"):
            _check_reachable(str(self._address))
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address is None:
            quiet["include_dashboard"] = False
        terminates = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(address=self._address or "local", **quiet)
            if terminates is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, terminates)  # Ray's own ends the process without a word
        except Exception as error:  # Ray has many errors for this, none in common
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            what = f"--address {self._address}: Ray cannot be joined" if self._address else "Ray cannot be started here"
            raise InputError(f"{what} ({first})") from error

    def _resources(self, threads: int) -> dict[str, float]:
        has: dict[str, float] = self._ray.cluster_resources()
        wanted = {"CPU": threads if self._cpus is None else self._cpus, "GPU": self._gpus}
        if self._address is None and self._cpus is None:
            wanted["CPU"] = min(wanted["CPU"], has.get("CPU", 1))
        for kind, number in wanted.items():
            if number > has.get(kind, 0):
                raise InputError(
                    f"a trial asks for {number:g} {kind}s and Ray has {has.get(kind, 0):g} in all; ask for fewer with "
                    f"--trial-{kind.lower()}s"
                )
        return {"num_cpus": wanted["CPU"], "num_gpus": wanted["GPU"]}

    def _collect(self, task: Any, job: Job) -> Trial:
        """What came of a finished task, its files put into the job's folder."""
        try:
            trial, files = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OSError):  # a full disk there ends the run
                raise OSError(error.cause.errno, f"on a node of Ray: {error.cause.strerror or error.cause}") from error
            return job.failed(f"{type(error.cause).__name__}: {error.cause}")
        except self._ray.exceptions.RayError as error:  # the process or node was lost, again and again
            return job.failed(f"lost in {ATTEMPTS} attempts ({_first_line(error)})")
        if files:
            folder = empty_folder(job.folder)
            for name, content in files.items():
                (folder / name).write_bytes(content)
        outcome: Trial = trial
        return outcome


@functools.cache
def _worker() -> Worker:
    """The worker of a process of Ray: its open dataset serves the trials that come there one after the other."""
    return Worker()


def _import(plugins: Sequence[Path]) -> None:
    """The task that imports plugins and does nothing else."""
    for plugin in plugins:
        load_plugin(plugin)


def _first_line(error: Exception) -> str:
    """Kind and first line of an error of Ray, which tells many more."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _run(job: Job) -> tuple[Trial, dict[str, bytes]]:
    """The task: what came of a trial, and its files."""
    with tempfile.TemporaryDirectory(prefix="mil-zoo-") as temporary:
        folder, place = Path(temporary) / "trial", job.place
        if place is not None and not place.folder.parent.is_dir():  # the run directory lies on another machine's disk
            place = dataclasses.replace(place, folder=Path(temporary) / "unfinished")
        trial = _worker().run(dataclasses.replace(job, folder=folder, place=place))
        files = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
    return trial, files


def _check_reachable(address: str) -> None:
    """Ray itself tries for a minute and then ends the process: a plain connection tells within seconds."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None:
        raise InputError(f"--address {address!r} must be host:port or ray://host:port")
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise InputError(
            f"--address {address}: nothing answers there ({error}); start a cluster with 'ray start --head', or leave "
            "--address out to start one on this machine"
        ) from error
