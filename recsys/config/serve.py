"""``serve``: how a registered or pulled model answers over HTTP, and when it uses an index of
items.
"""

from __future__ import annotations

from pydantic import Field

from recsys.config.section import PathOrUri, Section


class AbConfig(Section):
    """An A/B test: a second model answers some of the users."""

    model: PathOrUri = Field(
        "",
        description=(
            "second model, named like serve.model, that answers a share of the users; empty: none"
        ),
    )
    share: float = Field(
        0.1, gt=0, lt=1, description="share of users that it answers, by a hash of the user id"
    )
    salt: str = Field("ab", description="salt of the hash; another salt chooses other users")
    interleave: bool = Field(
        False,
        description=(
            "these users get one list merged from both models (team draft) instead of the second"
            " model's"
        ),
    )


class ExploreConfig(Section):
    """Random order of the best items for some users, for off-policy evaluation."""

    share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of users and days whose best items are shown in random order",
    )
    pool: int = Field(20, ge=2, le=1000, description="number of best items that are shuffled")
    salt: str = Field(
        "explore", description="salt of the hash; another salt chooses other users, days and orders"
    )


class ServeConfig(Section):
    """The HTTP server and its limits."""

    model: PathOrUri = Field(
        "",
        description=(
            "model to serve: models:/NAME@ALIAS, models:/NAME/VERSION, or a pulled folder; "
            "default: models:/REGISTRY.NAME@champion"
        ),
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen on; 0.0.0.0 opens the server to the network",
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0: any free port")
    token_env: str = Field(
        "",
        description="environment variable with the token that callers must send; empty: no token",
    )
    stock_token_env: str = Field(
        "",
        description=(
            "environment variable with the token of POST /stock; empty: the stock cannot be changed"
        ),
    )
    stock_file: PathOrUri = Field(
        "",
        description=(
            "local file that keeps the stock when the server restarts; empty: the stock is not kept"
        ),
    )
    ab: AbConfig = Field(default_factory=AbConfig)
    explore: ExploreConfig = Field(default_factory=ExploreConfig)
    log: PathOrUri = Field(
        "",
        description=(
            "local folder to which each answer is appended as a JSON line, for recsys compare"
            " --logs; empty: no log"
        ),
    )
    replicas: int = Field(
        1, ge=1, description="processes that answer, each with a copy of the model"
    )
    cpus: float = Field(1.0, gt=0, description="CPUs of each replica")
    batch_size: int = Field(64, ge=1, description="calls that one forward pass answers, at most")
    batch_wait_ms: float = Field(
        0.0, ge=0, description="milliseconds that a call waits for more calls to join its batch"
    )
    poll_seconds: float = Field(
        10.0,
        gt=0,
        description=(
            "seconds between checks for a new version, which then replaces the present one without"
            " a pause"
        ),
    )
    max_retry_s: float = Field(
        600.0,
        gt=0,
        description=(
            "longest pause in seconds before a version that could not be loaded is tried again; the"
            " first pause is poll_seconds, each later one is twice as long"
        ),
    )
    timeout_s: float = Field(
        30.0, gt=0, description="seconds after which a call without an answer ends (408)"
    )
    body_timeout_s: float = Field(
        10.0,
        gt=0,
        description="seconds in which a call's body must arrive, or the call is refused (408)",
    )
    max_bodies: int = Field(
        1000,
        ge=1,
        description=(
            "bodies that arrive at the same time, at most; for one more the slowest call is refused"
            " (408)"
        ),
    )
    max_waiting: int = Field(
        1000, ge=1, description="calls that wait for an answer, at most; more are refused (503)"
    )
    max_bytes: int = Field(
        4 << 20, ge=1, description="bytes of a call's body, at most; more is refused (413)"
    )
    max_requests: int = Field(
        1000, ge=1, description="requests in a call, at most; more are refused (413)"
    )
    max_answers: int = Field(
        100_000,
        ge=1,
        description="items in all lists of a call (the sum of k), at most; more are refused (413)",
    )
    max_scores: int = Field(
        500_000_000,
        ge=1,
        description="requests of a call times items of the model, at most; more are refused (413)",
    )
    drain_s: float = Field(
        1.0,
        ge=0,
        description=(
            "seconds after SIGINT or SIGTERM in which new calls are refused (503) before the server"
            " ends"
        ),
    )
    exact_items: int = Field(
        200_000,
        ge=0,
        description=(
            "number of items up to which all are scored; above it, `recsys register` adds an index"
        ),
    )
