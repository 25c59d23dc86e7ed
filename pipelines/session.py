"""The former name of :mod:`pipelines.plumbing.session`, for programs that import it from here."""

from pipelines.plumbing.session import check_cpus, quiet, ray_session

__all__ = ["check_cpus", "quiet", "ray_session"]
