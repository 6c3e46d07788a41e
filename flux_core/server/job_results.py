"""The results of jobs: of those whose worker cannot report one, and as they are stored.

Pure functions; `job_ends.py` sends and stores what they return.
"""

from __future__ import annotations

from typing import Any

from ..errors import SluiceError
from ..graph.prompt import name_of
from ..workers.process import WorkerDied
from ..workers.protocol import Message
from .job import Job, now
from .members import Member

# The result of a job whose worker died while it was stopping for a pause.
PAUSED_ALREADY: Message = {"status": "interrupted", "paused": True}


def interrupted(job: Job) -> Message:
    """The result of a job that was being stopped and whose worker has gone."""
    data = {"prompt_id": job.prompt_id, "node_id": "", "node_type": "", "executed": [], "timestamp": now()}
    messages = [["execution_interrupted", data]]
    return {"status": "interrupted", "outputs": {}, "meta": {}, "messages": messages, "facts": {}}


def failed(job: Job, member: Member, error: SluiceError) -> Message:
    """The result of a job whose worker has died."""
    node = job.request["prompt"].get(member.node or "", {})
    states = member.progress.get("nodes", {})
    data = {
        "prompt_id": job.prompt_id,
        "node_id": member.node or "",
        "node_type": node.get("class_type", ""),
        "executed": [one for one, state in states.items() if state.get("state") == "finished"],
        "exception_message": str(error),
        "exception_type": type(error).__name__,
        "traceback": [],
        "current_inputs": {},
        "current_outputs": list(job.request["prompt"]),
        "timestamp": now(),
    }
    if isinstance(error, WorkerDied) and error.killed:
        data["about"] = "memory"
    messages = [["execution_error", data]]
    return {"status": "error", "outputs": {}, "meta": {}, "messages": messages, "facts": {}}


def stored(done: Message) -> dict[str, Any]:
    """A result in the form of the history."""
    succeeded = done["status"] == "success"
    status = {
        "status_str": "success" if succeeded else "error",
        "completed": succeeded,
        "messages": done["messages"],
    }
    return {"outputs": done["outputs"], "meta": done["meta"], "status": status, "facts": done["facts"]}


def failure_line(job: Job, messages: list[Any]) -> str:
    """A failed job as one line for the terminal and the log panel: the node and the error."""
    error = messages[-1][1] if messages else {}
    node_id = str(error.get("node_id", ""))
    node = job.request["prompt"].get(node_id)
    where = f" in {name_of(node_id, node)}" if node else ""
    return f"The job failed{where}: {' '.join(str(error.get('exception_message', '')).split())}"
