"""Training processes side by side: each task is the `train` command, run on its own.

Started afresh, never forked: a fork of a process that has threads or a CUDA context
may hang. Where the extra `ray` is installed, Ray spreads the same processes over its
cluster; the machines must then see the same files.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue
from threading import Event

from promptdial.prompts.errors import MissingExtra
from promptdial.prompts.training.many.many import (
    TRAINED,
    Entry,
    Job,
    arguments_of,
    failed,
)

LOGS = "logs"
PATIENCE_S = 10.0
"""How long an interrupted worker may take before it is killed."""

Environment = dict[str, str]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def visible_gpus(device: str) -> list[str]:
    """Names, as CUDA_VISIBLE_DEVICES has them, of the GPUs that training may use."""
    if device == "cpu":
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if named:
        return [name.strip() for name in named.split(",")][:count]
    return [str(index) for index in range(count)]


def environments(workers: int, gpus: list[str], threads: int = 0) -> list[Environment]:
    """What each worker's environment adds: its share of the cores, and its GPU.

    Args:
        workers: How many; 0 for one a GPU, or one for every two cores.
        gpus: Names of the GPUs; () for none.
        threads: Threads of each; 0 for an even share of the cores.
    """
    count = workers or len(gpus) or max(1, cores() // 2)
    share = str(threads or max(1, cores() // count))
    found: list[Environment] = []
    for index in range(count):
        added = {"OMP_NUM_THREADS": share, "RAYON_NUM_THREADS": share}
        if gpus:
            added["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        found.append(added)
    return found


def run_in_processes(
    jobs: list[Job], model: str, slots: list[Environment]
) -> Generator[Entry]:
    """Train jobs, at most one a slot at a time; entries as they come.

    An interrupt ends every worker before it goes on.

    Args:
        jobs: What to train.
        model: MODEL.
        slots: What each worker's environment adds.
    """
    free: Queue[Environment] = Queue()
    for slot in slots:
        free.put(slot)
    here = Path.cwd()
    running: set[subprocess.Popen[str]] = set()
    stopping = Event()

    def begun(process: subprocess.Popen[str]) -> None:
        running.add(process)
        if stopping.is_set():
            process.send_signal(signal.SIGINT)

    def one(job: Job) -> Entry:
        slot = free.get()
        try:
            return run_job(job, model, here, slot, begun, running.discard)
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(slots)) as pool:
        futures: list[Future[Entry]] = [pool.submit(one, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            stopping.set()
            for future in futures:
                future.cancel()
            # The pool waits for its threads, and those for their processes.
            for process in list(running):
                _end(process)
            raise


def run_on_ray(jobs: list[Job], model: str, gpus: list[str]) -> Generator[Entry]:
    """Train jobs on Ray: the cluster that RAY_ADDRESS names, or this machine.

    Args:
        jobs: What to train.
        model: MODEL.
        gpus: GPUs that this machine has; with any, each job takes one.

    Raises:
        MissingExtra: Ray is not installed.
    """
    # Ray reports what it is used for to its makers unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise MissingExtra("train-all --workers ray", "ray") from None
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    here = Path.cwd()
    added = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    # Ray sets CUDA_VISIBLE_DEVICES of a task that takes a GPU; the process inherits it.
    remote = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=0)(run_job)
    waiting = {remote.remote(job, model, here, added): job for job in jobs}
    try:
        while waiting:
            for done in ray.wait(list(waiting))[0]:
                job = waiting.pop(done)
                try:
                    yield ray.get(done)
                except ray.exceptions.RayError as error:
                    yield failed(job.task, "INTERNAL", str(error))
    finally:
        for left in waiting:
            ray.cancel(left)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting), timeout=PATIENCE_S)
        ray.shutdown()


def run_job(
    job: Job,
    model: str,
    here: Path,
    environment: Environment,
    started: Callable[["subprocess.Popen[str]"], None] = lambda process: None,
    ended: Callable[["subprocess.Popen[str]"], None] = lambda process: None,
) -> Entry:
    """Train one task in a process of its own; its stderr goes to OUT/logs/TASK.log.

    Args:
        job: What to train.
        model: MODEL.
        here: What relative paths start from; a worker of Ray may be elsewhere.
        environment: Added to the process's own.
        started: Told of the process.
        ended: Told that it is gone.

    Returns:
        The entry, of a failed task too.
    """
    log = here / log_of(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "promptdial.runtime", "train", model, "--json"]
    command += ["--task", str(job.folder), "--out", str(job.out)]
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command + arguments_of(job.config),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=here,
            env={**os.environ, **environment},
            # Ctrl-C reaches the workers through us alone, and once.
            start_new_session=True,
        )
        started(process)
        try:
            answer, _ = process.communicate()
        except BaseException:
            _end(process)
            raise
        finally:
            ended(process)
    if process.returncode == 0:
        return Entry(job.task, TRAINED, json.loads(answer))
    return failed(job.task, *_last_error(log, process.returncode))


def log_of(job: Job) -> Path:
    """Where a job's process writes what it says."""
    return job.out.parent / LOGS / f"{job.task}.log"


def _end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_error(log: Path, status: int) -> tuple[str, str]:
    """Code and message of the command's error line, or what ended it without one."""
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    head, _, rest = (lines[-1] if lines else "").partition(": ")
    if head == "promptdial":
        code, _, message = rest.partition(": ")
        return code, message
    end = f"signal {-status}" if status < 0 else f"exit code {status}"
    return "INTERNAL", f"the worker ended with {end} and no error line; see {log}"
