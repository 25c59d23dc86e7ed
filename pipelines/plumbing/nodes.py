"""The machines that a training may use, from this machine, a Ray cluster or Ray's dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.plumbing.memory import available_memory
from recsys.config import RayConfig


@dataclass(frozen=True)
class Node:
    """A machine of the cluster; a size is None if it is unknown."""

    cpus: float
    gpus: float
    memory: int | None


def local_nodes() -> list[Node]:
    """The local machine, with its memory that is free now."""
    import os

    return [Node(float(os.cpu_count() or 1), 0.0, available_memory())]


def reachable_nodes(ray: RayConfig) -> list[Node]:
    """The local machine for a local Ray, otherwise the machines of the connected cluster."""
    return local_nodes() if ray.address == "local" else ray_nodes()


def ray_nodes() -> list[Node]:
    """The machines of the connected Ray cluster; memory reserved for objects and the system counts
    too.
    """
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [
        Node(
            float(node.get("CPU", 0)),
            float(node.get("GPU", 0)),
            (
                int((node["memory"] + node.get("object_store_memory", 0)) * 1.1)
                if node.get("memory")
                else None
            ),
        )
        for node in found
    ]


def dashboard_nodes(summary: Any) -> list[Node]:
    """The machines in the dashboard's answer to ``/nodes?view=summary``; none if it has another
    form.
    """
    try:
        found = []
        for node in summary["data"]["summary"]:
            if node["raylet"].get("state") == "ALIVE":
                total = (
                    node["raylet"].get("resourcesTotal")
                    or node["raylet"].get("resources_total")
                    or {}
                )
                memory = node.get("mem")
                cpus = total.get("CPU", node["cpus"][0] if node.get("cpus") else 0)
                found.append(
                    Node(
                        float(cpus), float(total.get("GPU", 0)), int(memory[0]) if memory else None
                    )
                )
        return found
    except (KeyError, TypeError, IndexError, ValueError):
        return []
