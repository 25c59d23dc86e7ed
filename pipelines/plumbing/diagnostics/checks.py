"""The checks of ``recsys doctor``: each says what it found and how to fix a problem.

A check may be slow or never return; :mod:`pipelines.doctor` limits the wait.
"""

from __future__ import annotations

from typing import Final

from pipelines.plumbing.diagnostics.finding import Check
from pipelines.plumbing.diagnostics.installation import extras, versions
from pipelines.plumbing.diagnostics.machine import graphics, machine, training
from pipelines.plumbing.diagnostics.services import job_server, ray_cluster, tracking
from pipelines.plumbing.diagnostics.storage import folders, source, text_model

# In the order of the report.
CHECKS: Final[dict[str, Check]] = {
    "versions": versions,
    "extras": extras,
    "gpu": graphics,
    "machine": machine,
    "training": training,
    "ray": ray_cluster,
    "job server": job_server,
    "mlflow store": tracking,
    "places": folders,
    "data.source": source,
    "text model": text_model,
}
