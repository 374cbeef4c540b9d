"""Which process executes a run, and what becomes of runs whose process died: Dagster would show them running for ever.

Runs of `mdms run` and of the daemon alike are signed (`sign`) by the process that executes them when it makes its resources.
"""

import os
import socket
import time
from pathlib import Path

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunRecord, RunsFilter

PROCESS_TAG = "mdms/process"
UNFINISHED = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
START_SECONDS = 300.0  # until a run that no process has signed counts as dead


def this_process() -> str:
    """host:boot:pid:start of this process: no other process ever has the same."""
    return f"{socket.gethostname()}:{_boot()}:{os.getpid()}:{_started(os.getpid())}"


def sign(instance: DagsterInstance, run: DagsterRun) -> None:
    """Note that this process executes the run. A run that repeats another has inherited the other's tag."""
    if run.tags.get(PROCESS_TAG) != this_process() and instance.get_run_by_id(run.run_id) is not None:
        instance.add_run_tags(run.run_id, {PROCESS_TAG: this_process()})


def fail_dead_runs(instance: DagsterInstance) -> list[str]:
    """Mark runs of this machine whose process is gone as failed; their ids."""
    dead = []
    for record in instance.get_run_records(RunsFilter(statuses=UNFINISHED)):
        why = _dead(instance, record)
        if why:
            instance.report_run_failed(record.dagster_run, message=why)
            dead.append(record.dagster_run.run_id)
    return dead


def _dead(instance: DagsterInstance, record: RunRecord) -> str | None:
    """Why the run will never end by itself, None where it may."""
    run = record.dagster_run
    tag = run.tags.get(PROCESS_TAG, "")
    if not tag or _inherited(instance, run, tag):
        waited = time.time() - record.update_timestamp.timestamp()
        return f"No process has begun this run within {START_SECONDS:.0f} s." if waited > START_SECONDS else None
    host, boot, pid, started = (*tag.split(":"), "", "", "", "")[:4]
    if host == socket.gethostname() and (boot != _boot() or _started(int(pid)) != started):
        return "The process that made this run is gone (killed, or the machine was restarted)."
    return None


def _inherited(instance: DagsterInstance, run: DagsterRun, tag: str) -> bool:
    """Whether the tag is that of the run which this one repeats."""
    parent = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return parent is not None and parent.tags.get(PROCESS_TAG) == tag


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "unknown"


def _started(pid: int) -> str:
    """When the process began, in clock ticks since boot; empty where there is no such process, or only what its parent left of it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
