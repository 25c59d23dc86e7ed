"""The former name of :mod:`pipelines.plumbing.session`, for programs that import it from here.

Deprecated: the next release removes it.
"""

from pipelines.plumbing.session import check_cpus, quiet, ray_session

__all__ = ["check_cpus", "quiet", "ray_session"]
