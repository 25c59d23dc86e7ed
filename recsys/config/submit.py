"""``submit``: how a verb runs as a job on a Ray cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.config.section import Section


class SubmitConfig(Section):
    """How ``recsys submit`` reaches the cluster. The job itself does not read this section."""

    address: str = Field(
        "",
        description=(
            "http://HOST:PORT of the cluster's dashboard; default: $RAY_API_SERVER_ADDRESS or"
            " http://127.0.0.1:8265"
        ),
    )
    id: str = Field(
        "", pattern=r"^[\w.-]*$", description="submission id; default: verb, time and a random part"
    )
    cpus: float = Field(
        0,
        ge=0,
        description="CPUs of the job's driver, which evaluates; 0: the driver runs on the head",
    )
    resources: dict[str, float] = Field(
        {}, description="custom resources of the job's driver, e.g. {driver: 1} of cluster.yaml"
    )
    follow: bool = Field(
        True, description="print the log until the job ends, and exit with its exit code"
    )
    on_interrupt: Literal["detach", "stop"] = Field(
        "detach", description="what Ctrl-C does with the followed job: leave it running, or stop it"
    )
