"""Ray (https://docs.ray.io) as the engine of cluster.py: one actor for each worker, placed by CPUs and GPUs.

An actor starts `sluice work` as a process of its own and starts it again when it ends. Ray starts actors anew when
their node is lost, and scales its nodes by the room that waiting actors ask for. All nodes need the same versions of
Python, Ray and Sluice. Whoever reaches the ports of Ray can run code there: keep them inside the cluster.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from ..errors import SluiceError
from .cluster import LOST, RUNNING, WAITING, State

LOCAL = "local"
_ANSWER_SECONDS = 5.0


class RayEngine:
    """A connection to a Ray cluster."""

    def __init__(self, address: str, cpus: float, gpus: float) -> None:
        """address: of the cluster, "auto" for the one of this machine, or "local" for one that ends with this process.

        cpus, gpus: of each worker. Raises SluiceError without Ray or without the cluster.
        """
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise SluiceError('The engine Ray is not installed here: pip install "sluice[cluster]".') from None
        try:
            self._ray.init(address=None if address == LOCAL else address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SluiceError(
                f"There is no Ray cluster at {address} ({error}). Start one with `ray start --head`, or use --engine "
                f"{LOCAL} for this machine alone."
            ) from error
        self._actor = self._ray.remote(_actor_class()).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=-1, scheduling_strategy="SPREAD"
        )
        self._workers: dict[int, Any] = {}

    def start(self, number: int, command: Sequence[str]) -> None:
        self._workers[number] = self._actor.remote(list(command))

    def state(self, number: int) -> State:
        errors = self._ray.exceptions
        try:
            return State(RUNNING, self._ray.get(self._workers[number].node.remote(), timeout=_ANSWER_SECONDS))
        except errors.GetTimeoutError:
            return State(WAITING)  # for room, or it is being started anew
        except errors.ActorDiedError:
            return State(LOST)
        except errors.RayActorError:  # it is not reached just now; Ray starts it anew
            return State(WAITING)

    def stop(self, number: int, seconds: float) -> None:
        worker = self._workers.pop(number)
        try:
            self._ray.get(worker.stop.remote(seconds), timeout=seconds + _ANSWER_SECONDS)
        except (self._ray.exceptions.GetTimeoutError, self._ray.exceptions.RayActorError):
            pass
        self._ray.kill(worker)


def _actor_class() -> type:
    """The class of an actor. It is made here, so that Ray sends it by value and no node has to import it."""

    class Worker:
        """`sluice work` on the node that Ray has chosen."""

        def __init__(self, command: list[str]) -> None:
            import threading

            self.command, self.stopping = command, threading.Event()
            self.process: Any = None
            threading.Thread(target=self._keep, daemon=True).start()

        def _keep(self) -> None:
            import subprocess
            import sys

            while not self.stopping.is_set():
                self.process = subprocess.Popen([sys.executable, "-m", "sluice", *self.command])
                self.process.wait()
                self.stopping.wait(2.0)

        def node(self) -> str:
            """Where it runs."""
            import socket

            import ray

            return f"{socket.gethostname()} (node {ray.get_runtime_context().get_node_id()[:8]})"

        def stop(self, seconds: float) -> None:
            """End the process."""
            self.stopping.set()
            if self.process is not None:
                self.process.terminate()
                try:
                    self.process.wait(seconds)
                except Exception:
                    self.process.kill()

    return Worker
