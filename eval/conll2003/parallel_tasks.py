"""Runs commands that depend on one another, several at once on several GPUs, and keeps what they report.

In: `Task`s, the most important first, and `Settings`. Out: `results.json`, rewritten whenever a task ends, and the
tasks that are left. A task starts on a free slot once the model folder that it reads is there; what has a result is
not run again. When the time is up the tasks under way are killed, and a later call starts them again.
Knows nothing of what the commands do.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
THREAD_LIMITS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
POLL_SECONDS = 0.1
LOG_LINES = 15  # shown of a task that failed


@dataclass(frozen=True)
class Task:
    """One command.

    Attributes:
        name: of the task, its log and its result.
        group: by which tasks are chosen.
        command: arguments of Python, run in the project's root. Of the marks in them, "{model}" is the folder that the
            task makes, or else reads, "{result}" the JSON file that it is to write, and the others are settings.
        reads: the model folder that must be there; None where it needs none.
        makes: the model folder that it leaves; with `reads`, a copy of that one, which the command changes.
    """

    name: str
    group: str
    command: tuple[str, ...]
    reads: str | None = None
    makes: str | None = None

    @property
    def recipe(self) -> dict[str, Any]:
        """What a result must have been made by to count as this task's."""
        return {"group": self.group, "command": list(self.command)}


@dataclass(frozen=True)
class Settings:
    """Where and how tasks run.

    Attributes:
        out: folder of `results.json`.
        work: folder of models, logs and files on the way.
        places: what each mark of the commands stands for.
        gpus: number of GPUs, the first of CUDA_VISIBLE_DEVICES where that is set; 0 for the CPU.
        jobs_per_gpu: tasks at once on each (on the CPU, in all).
        max_seconds: time for all.
    """

    out: Path
    work: Path
    places: Mapping[str, str]
    gpus: int
    jobs_per_gpu: int
    max_seconds: float


def read_results(out: Path) -> dict[str, Any]:
    """The results so far, by task; empty where there are none."""
    path = out / "results.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def write_results(out: Path, results: Mapping[str, Any]) -> None:
    """Replaces the results as a whole: a reader, or a run that is cut, never sees half of them."""
    out.mkdir(parents=True, exist_ok=True)
    part = out / "results.json.part"
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(out / "results.json")


def left_to_do(every: Sequence[Task], groups: Sequence[str], results: Mapping[str, Any], work: Path) -> list[Task]:
    """The tasks of these groups without a result, and those that make the models which they read and which are gone.

    Raises:
        ValueError: a result that was made by another command.
    """
    for task in every:
        made = results.get(task.name, task.recipe)
        if {key: made[key] for key in task.recipe} != task.recipe:
            then, now = (shlex.join(word for word in words if word not in others) for words, others in (
                (made["command"], task.command), (task.command, made["command"])))  # fmt: skip
            raise ValueError(
                f"there is a result of {task.name} made with {then!r} where {now!r} is asked for now: name another "
                "output folder, or give the options of the first call."
            )
    makers = {task.makes: task for task in every if task.makes is not None}
    queue = [task for task in every if task.group in groups and task.name not in results]
    for task in queue:  # grows on the way
        maker = makers.get(task.reads)
        if maker is None or maker in queue:
            continue
        if maker.name not in results or not (work / str(task.reads)).is_dir():
            queue.append(maker)
    return [task for task in every if task in queue]


@dataclass(frozen=True)
class _Run:
    task: Task
    process: subprocess.Popen[bytes]
    slot: int
    started: float = field(default_factory=time.monotonic)


class Runner:
    """Runs tasks on slots, of which each GPU has `jobs_per_gpu`; adds to `results` and writes them."""

    def __init__(self, settings: Settings, results: dict[str, Any]) -> None:
        """Starts nothing yet."""
        self.settings, self.results = settings, results
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(settings.gpus)]
        gpus: list[str | None] = [*names[: settings.gpus]] or [None]
        self.slots = gpus * settings.jobs_per_gpu
        self.failed: list[Task] = []

    def run(self, tasks: Sequence[Task]) -> list[Task]:
        """Runs the tasks until none can be started or the time is up; returns those that did not end well."""
        self.settings.work.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + self.settings.max_seconds
        waiting, running, unfinished = list(tasks), list[_Run](), list(tasks)
        try:
            while (waiting or running) and time.monotonic() < end:
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    if self._note(run):
                        unfinished.remove(run.task)
                coming = {task.makes for task in unfinished}
                ready = [task for task in waiting if task.reads is None or task.reads not in coming]
                if not ready and not running:
                    break  # what is left needs what has failed
                free = [slot for slot in range(len(self.slots)) if all(run.slot != slot for run in running)]
                for slot, task in zip(free, ready, strict=False):
                    waiting.remove(task)
                    running.append(self._start(task, slot))
                time.sleep(POLL_SECONDS)
        finally:
            for run in running:
                self._kill(run)
        return unfinished

    def _start(self, task: Task, slot: int) -> _Run:
        work = self.settings.work
        if task.makes is not None:
            shutil.rmtree(work / task.makes, ignore_errors=True)
        if task.makes is not None and task.reads is not None:
            shutil.copytree(work / task.reads, work / task.makes)
        print(f"start {task.name} on {self._device(slot)}", flush=True)
        with self._log(task).open("wb") as log:
            process = subprocess.Popen(
                self._command(task),
                cwd=ROOT,
                env=self._environment(slot),
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return _Run(task, process, slot)

    def _command(self, task: Task) -> list[str]:
        model = self.settings.work / str(task.makes or task.reads)
        places = {**self.settings.places, "{model}": str(model), "{result}": str(self._reported(task))}
        words = list(task.command)
        for mark, place in places.items():
            words = [word.replace(mark, place) for word in words]
        return [sys.executable, *words]

    def _environment(self, slot: int) -> dict[str, str]:
        threads = str(max(1, len(os.sched_getaffinity(0)) // len(self.slots)))
        gpu = self.slots[slot]
        own = {
            "PYTHONPATH": os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part),
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": gpu or "",
        }
        return os.environ | dict.fromkeys(THREAD_LIMITS, threads) | own

    def _note(self, run: _Run) -> bool:
        """Keeps the result of a task that has ended, or shows the end of its log; returns whether it went well."""
        task, seconds, code = run.task, time.monotonic() - run.started, run.process.returncode
        reported = [] if code else self._results(task)
        if reported:
            for checkpoint in (self.settings.work / (task.makes or task.name)).glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            result = {"seconds": seconds, "device": self._device(run.slot), "result": reported[-1]}
            self.results[task.name] = task.recipe | result
            write_results(self.settings.out, self.results)
            print(f"done {task.name}, {seconds:.0f} s", flush=True)
        else:
            self.failed.append(task)
            tail = self._log(task).read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
            why = f"exit code {code}" if code else "no result"
            print(f"FAILED {task.name}, {why}; the end of {self._log(task)}:")
            print("\n".join(tail), flush=True)
        return bool(reported)

    def _results(self, task: Task) -> list[Any]:
        """What the command wrote where it was told to, or printed in lines of JSON; warnings may follow the last."""
        if "{result}" in task.command:
            path = self._reported(task)
            texts = [path.read_text("utf-8")] if path.is_file() else []
        else:
            texts = self._log(task).read_text("utf-8", "replace").splitlines()
        found = []
        for text in texts:
            with suppress(ValueError):
                found.append(json.loads(text))
        return found

    def _kill(self, run: _Run) -> None:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()
        print(f"stopped {run.task.name} after {time.monotonic() - run.started:.0f} s", flush=True)

    def _device(self, slot: int) -> str:
        return "cpu" if self.slots[slot] is None else f"cuda:{self.slots[slot]}"

    def _log(self, task: Task) -> Path:
        return self.settings.work / f"{task.name}.log"

    def _reported(self, task: Task) -> Path:
        return self.settings.work / f"{task.name}.json"
