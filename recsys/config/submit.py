"""``submit``: how a verb reaches a Ray cluster as a job."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.config.section import Section


class SubmitConfig(Section):
    """How ``recsys submit`` reaches the cluster; of no meaning to a job itself."""

    address: str = Field(
        "", description="http://HOST:PORT of the dashboard; default: $RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265"
    )
    id: str = Field("", pattern=r"^[\w.-]*$", description="submission id; default: verb, time and a random part")
    cpus: float = Field(
        0, ge=0, description="of the job's driver, which evaluates; 0: on the head, else where so many are free"
    )
    resources: dict[str, float] = Field(
        {}, description="of the job's driver beside CPUs, by the names of the cluster, e.g. {driver: 1} of cluster.yaml"
    )
    follow: bool = Field(True, description="print the log until the job ends, and end with its exit code")
    on_interrupt: Literal["detach", "stop"] = Field(
        "detach", description="what Ctrl-C does to the job that is followed"
    )
