"""``serve``: how a registered or pulled model answers over HTTP, and from which size by an index of its items."""

from __future__ import annotations

from pydantic import Field

from recsys.config.section import Place, Section


class AbConfig(Section):
    model: str = Field(
        "", description="a second model, named as serve.model is, that answers a share of the users; empty: none"
    )
    share: float = Field(0.1, gt=0, lt=1, description="of the users, by a hash of their id: the same at every call")
    salt: str = Field("ab", description="of the hash: another one draws other users")


class ExploreConfig(Section):
    share: float = Field(
        0.0, ge=0, le=1, description="of users and days whose best items are shown in random order; 0: none"
    )
    pool: int = Field(20, ge=2, le=1000, description="best items that are shuffled")
    salt: str = Field("explore", description="of the hash: another one draws other users, days and orders")


class ServeConfig(Section):
    model: str = Field(
        "",
        description="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder that was pulled; "
        "default: models:/REGISTRY.NAME@champion",
    )
    host: str = Field("127.0.0.1", min_length=1, description="0.0.0.0 opens it to the network")
    port: int = Field(8000, ge=0, le=65535, description="0: any free one")
    token_env: str = Field("", description="environment variable with a token that callers must send; empty: none")
    stock_token_env: str = Field(
        "", description="environment variable with the token of POST /stock; empty: the stock cannot be changed"
    )
    stock_file: Place = Field(
        "", description="local file in which the stock survives a restart; empty: it is forgotten with the server"
    )
    ab: AbConfig = Field(default_factory=AbConfig)
    explore: ExploreConfig = Field(default_factory=ExploreConfig)
    log: Place = Field(
        "",
        description="local folder to which every answer is appended as a JSON line, for recsys compare --logs; empty: "
        "nothing is logged",
    )
    replicas: int = Field(1, ge=1, description="processes that answer, with a copy of the model each")
    cpus: float = Field(1.0, gt=0, description="of a replica")
    batch_size: int = Field(64, ge=1, description="calls that one forward pass answers")
    batch_wait_ms: float = Field(0.0, ge=0, description="that a call waits for others; 0: those that wait anyway")
    poll_seconds: float = Field(10.0, gt=0, description="between looks for another version; it takes over in flight")
    max_retry_s: float = Field(
        600.0,
        gt=0,
        description="longest pause before another try at a version that could not be loaded; the first is "
        "poll_seconds, each is twice the one before",
    )
    timeout_s: float = Field(30.0, gt=0, description="after which a call is given up (408)")
    body_timeout_s: float = Field(10.0, gt=0, description="in which a call's body must arrive, or it is refused (408)")
    max_bodies: int = Field(
        1000, ge=1, description="bodies that arrive at the same time; for one more the slowest is given up (408)"
    )
    max_waiting: int = Field(1000, ge=1, description="calls that wait for an answer; more are refused (503)")
    max_bytes: int = Field(4 << 20, ge=1, description="of a call's body; more is refused (413)")
    max_requests: int = Field(1000, ge=1, description="of a call; more are refused (413)")
    max_answers: int = Field(
        100_000, ge=1, description="items that the lists of a call hold, the sum of k; more are refused (413)"
    )
    max_scores: int = Field(
        500_000_000, ge=1, description="requests of a call times items that the model scores; more are refused (413)"
    )
    drain_s: float = Field(
        1.0, ge=0, description="after SIGINT or SIGTERM that new calls are refused (503) before the server ends"
    )
    exact_items: int = Field(
        200_000, ge=0, description="items of a model up to which every one is scored; beyond, registering adds an index"
    )
