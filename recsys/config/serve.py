"""``serve``: how a registered or pulled model answers over HTTP, and from which size by an index of its items."""

from __future__ import annotations

from pydantic import Field

from recsys.config.section import Section


class ServeConfig(Section):
    model: str = Field(
        "",
        description="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder that was pulled; "
        "default: models:/REGISTRY.NAME@champion",
    )
    host: str = Field("127.0.0.1", min_length=1, description="0.0.0.0 opens it to the network")
    port: int = Field(8000, ge=0, le=65535, description="0: any free one")
    token_env: str = Field("", description="environment variable with a token that callers must send; empty: none")
    replicas: int = Field(1, ge=1, description="processes that answer, with a copy of the model each")
    cpus: float = Field(1.0, gt=0, description="of a replica")
    batch_size: int = Field(64, ge=1, description="calls that one forward pass answers")
    batch_wait_ms: float = Field(0.0, ge=0, description="that a call waits for others; 0: those that wait anyway")
    poll_seconds: float = Field(10.0, gt=0, description="between looks for another version; it takes over in flight")
    timeout_s: float = Field(30.0, gt=0, description="after which a call is given up (408)")
    max_bytes: int = Field(4 << 20, ge=1, description="of a call's body; more is refused (413)")
    max_requests: int = Field(1000, ge=1, description="of a call; more are refused (413)")
    exact_items: int = Field(
        200_000, ge=0, description="items of a model up to which every one is scored; beyond, registering adds an index"
    )
