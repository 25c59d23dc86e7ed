"""Local paths and URIs such as ``s3://BUCKET/KEY``, opened with time limits and clear error
messages.

Why one module: every stage takes both paths and URIs. A wrong bucket, a denied key or an endpoint
without an answer must give one message with the cure within seconds, not after the default timeouts
of three libraries.

Credentials come from the environment, the AWS files or the machine's role, never from a URI: URIs
are written into configurations, logs and MLflow. ``AWS_ENDPOINT_URL`` (or ``AWS_ENDPOINT_URL_S3``)
names a server other than AWS, or the URI does:
``s3://bucket/key?endpoint_override=http://host:9000``.
"""

from __future__ import annotations

import functools
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.fs

from recsys.errors import StorageError, choices
from recsys.storage.uris import CREDENTIALS, expanded, has_credentials, is_remote, without_query

CONNECT_S: Final = 5.0
READ_TIMEOUT_S: Final = 20.0  # an attempt ends after so long without data
ATTEMPTS: Final = 3
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REGIONS: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")
_IDENTITY: Final = ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_PROFILE")
_OPTIONS: Final = ("endpoint_override", "region", "scheme", "tls_ca_file_path")
_S3_PACKAGE: Final = "run `pip install 'multigrain[s3]'`"

_LIBRARIES: Final = ("botocore", "boto3", "s3transfer")
_OF_STORAGE: Final = re.compile(r"AWS Error|google::cloud|Bucket '|OAuth2|curlCode")
_NO_BUCKET: Final = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|[Bb]ucket '.*' not found")
_DENIED: Final = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|EXPIRED_TOKEN"
    r"|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken"
    r"|HTTP status 40[13]|Forbidden|\b403\b|Unable to locate credentials|OAuth2 access token"
)
_SILENT: Final = re.compile(
    r"NETWORK_CONNECTION|curlCode|REQUEST_TIMEOUT|Could not connect|Connect timeout|Read"
    r" timeout|ConnectionClosed"
    r"|Connection was closed|Retry policy exhausted"
)
_BUSY: Final = re.compile(
    r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|ServiceUnavailable|HTTP status 503|\b503\b"
)
# words of the system, Arrow, safetensors or SQLite → what is wrong with the disk, and the fix
_DISK: Final = {
    "No space left on device|database or disk is full": ("the disk is full", "free space there"),
    "Disk quota exceeded": (
        "the disk quota is used up",
        "free space there, or get a larger quota",
    ),
    "File too large": (
        "the file is larger than `ulimit -f` or the file system permits",
        "raise the limit, or choose another disk",
    ),
    "Read-only file system": (
        "the file system is read-only",
        "make it writable (an error of the disk also makes it read-only: see `dmesg`)",
    ),
    # SQLite also says this of a quota that is used up
    "Input/output error|disk I/O error": (
        "the disk reports an error",
        "check the disk (`dmesg`) and its quota",
    ),
}
_OF_DISK: Final = re.compile(rf"[^\n]*?({'|'.join(_DISK)})[^\n]*")
GO_ON: Final = "continue with the same command and --resume"


def filesystem_of(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The Arrow filesystem of a local path or URI, and the path inside it.

    Raises
    ------
    StorageError
        The URI has credentials or unknown options, or its filesystem cannot be opened.
    """
    if not is_remote(uri):
        return pyarrow.fs.LocalFileSystem(), expanded(uri).rstrip("/") or "/"
    if has_credentials(uri):
        raise StorageError(CREDENTIALS.format(uri.partition("://")[0]))
    if uri.startswith("s3://"):
        bucket_and_key, options = _split(uri)
        return _s3_filesystem(*_settings(uri, options)), bucket_and_key
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in uri:  # else 15 minutes
        uri = f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={ATTEMPTS * CONNECT_S:.0f}"
    try:
        with storage_errors(uri):
            filesystem, inner = pyarrow.fs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{without_query(uri)} cannot be opened: {error}; expected a path, s3:// or gs://"
        ) from None
    return filesystem, inner.rstrip("/") or "/"


def check_bucket(uri: str) -> None:
    """Refuse a remote URI whose bucket does not exist; do nothing for any other path or URI.

    Raises
    ------
    StorageError
        The bucket does not exist.
    """  # noqa: DOC501
    if not uri.startswith(("s3://", "gs://")):
        return
    filesystem, inner = filesystem_of(uri)
    bucket = inner.partition("/")[0]
    with storage_errors(uri):
        if filesystem.get_file_info(bucket).type == pyarrow.fs.FileType.NotFound:
            raise explain(OSError(f"Bucket '{bucket}' not found"), uri)


def read_bytes(uri: str) -> bytes:
    """Read the content of a small file.

    Raises
    ------
    FileNotFoundError
        The file does not exist.
    StorageError
        The URI cannot be reached, or access is denied.
    """
    filesystem, inner = filesystem_of(uri)
    with storage_errors(uri), filesystem.open_input_stream(inner, compression=None) as stream:
        return bytes(stream.readall())


def check_writable(uri: str) -> None:
    """Check that a folder is writable, with a small file that is removed again; a local folder must
    exist.

    Raises
    ------
    StorageError
        The folder is not writable.
    """  # noqa: DOC501
    filesystem, inner = filesystem_of(uri)
    path = f"{inner}/.writable-{uuid.uuid4().hex[:8]}"
    try:
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"1")
        filesystem.delete_file(path)
    except OSError as error:
        raise explain(error, uri, "write to") from error


@contextmanager
def storage_errors(uri: str, doing: str = "read") -> Iterator[None]:
    """Turn errors of a filesystem inside the block into clear messages; a missing file stays
    FileNotFoundError.

    Raises
    ------
    StorageError
        Any other error of a remote filesystem, or of the disk.
    """  # noqa: DOC501
    try:
        yield
    except Exception as error:
        if _of_disk(str(error)) is None and not (is_remote(uri) and _is_of_storage(error)):
            raise
        raise explain(error, uri, doing) from error


def _of_disk(text: str) -> tuple[str, str, str] | None:
    """The line of an error that is about the disk, what is wrong, and the fix; None for any other
    error.
    """
    found = _OF_DISK.search(text)
    if found is None:
        return None
    what, cure = next(
        meaning for words, meaning in _DISK.items() if re.search(words, found.group(1))
    )
    return found.group(), what, cure


def is_of_disk(error: BaseException) -> bool:
    """Whether the disk caused an error: it is full, over its quota, read-only or damaged."""
    return _of_disk(str(error)) is not None


def _is_of_storage(error: BaseException) -> bool:
    """Whether an error is of the storage and not of the content; a damaged Parquet file is also an
    OSError.
    """
    if type(error).__module__.split(".")[0] in _LIBRARIES:
        return True
    is_plain = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    return is_plain and _OF_STORAGE.search(str(error)) is not None


def explain(error: BaseException, uri: str, doing: str = "read") -> StorageError:
    """The meaning of an error of Arrow or boto3: what, where and the cure.

    Parameters
    ----------
    error : BaseException
        The error of Arrow or boto3.
    uri : str
        The URI that was accessed.
    doing : str
        What was tried: ``read``, ``write to`` or ``use``.

    Returns
    -------
    StorageError
        The error to raise.
    """
    text, where = str(error), without_query(uri)
    if (disk := _of_disk(text)) is not None:
        _, what, cure = disk
        return StorageError(f"cannot {doing} {where}: {what}; {cure}, and {GO_ON}")
    if _BUSY.search(text):
        return StorageError(
            f"cannot {doing} {where}: the server answers 503, because it is overloaded or out of"
            f" service; wait, and {GO_ON}"
        )
    bucket = where.partition("://")[2].partition("/")[0]
    if _NO_BUCKET.search(text):
        return StorageError(
            f"cannot {doing} {where}: there is no bucket {bucket}; create it, or correct the name"
        )
    if _DENIED.search(text):
        cure = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, for an account whose"
            " policy allows to list, read, write and delete there"
            if where.startswith("s3:")
            else "log in with credentials that may list, read, write and delete there"
        )
        return StorageError(f"cannot {doing} {where}: access is denied; {cure}")
    if _SILENT.search(text):
        server, cure = "its server", "check the network"
        if where.startswith("s3:"):
            server = _endpoint(dict(parse_qsl(uri.partition("?")[2]))) or "AWS"
            cure = "check the network, the region and AWS_ENDPOINT_URL"
        return StorageError(f"cannot {doing} {where}: {server} does not answer; {cure}")
    detail = next(iter(text.strip().splitlines()), type(error).__name__)
    return StorageError(
        f"cannot {doing} {where}: {detail}; check the URI, the network and the credentials"
    )


def message_of(error: BaseException) -> str | None:
    """The message for a storage error that a library raised, or for an error of the disk; None for
    any other error.
    """
    text = str(error)
    if (disk := _of_disk(text)) is not None:
        line, what, cure = disk
        return f"{what} ({line}); {cure}, and {GO_ON}"
    if isinstance(error, OSError) and "AWS Error" in text:
        found = re.search(r"key '(?P<key>[^']*)' in bucket '(?P<bucket>[^']*)'", text)
        return str(explain(error, f"s3://{found['bucket']}/{found['key']}" if found else "s3://"))
    return (
        str(explain(error, "s3://", "use"))
        if type(error).__module__.split(".")[0] in _LIBRARIES
        else None
    )


# ----------------------------------------------------------------------------------------------- s3


def s3_client(uri: str) -> Any:
    """A boto3 client for the server of an ``s3://`` URI, with the same time limits, for calls that
    Arrow lacks.

    Raises
    ------
    StorageError
        boto3 is not installed.
    """
    require_s3_client(uri)
    import boto3
    from botocore.config import Config

    _, options = _split(uri)
    region, endpoint, _, certificates = _settings(uri, options)[:4]
    limits = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    )
    with storage_errors(uri, "use"):
        return boto3.client(
            "s3",
            region_name=region,
            endpoint_url=endpoint or None,
            verify=certificates or None,
            config=limits,
        )


def require_s3_client(uri: str) -> None:
    """Check that boto3 is installed.

    Raises
    ------
    StorageError
        boto3 is not installed.
    """
    with suppress(ImportError):
        import boto3  # noqa: F401

        return
    raise StorageError(
        f"{without_query(uri)}: writing to S3 needs the package boto3; {_S3_PACKAGE}"
    )


def _split(uri: str) -> tuple[str, dict[str, str]]:
    """``BUCKET/KEY`` without decoding of percent codes, and the options after ``?``."""
    body, _, query = uri.removeprefix("s3://").partition("?")
    bucket = body.partition("/")[0]
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not bucket:
        raise StorageError("an s3:// URI names no bucket; expected s3://BUCKET/KEY")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise StorageError(
            f"s3://{body}: unknown option {', '.join(unknown)}; valid options: "
            f"{choices(_OPTIONS)}; credentials come only "
            "from the environment"
        )
    return body.rstrip("/"), options


def _endpoint(options: dict[str, str]) -> str:
    endpoint = options.get("endpoint_override") or next(
        (v for n in _ENDPOINTS if (v := os.environ.get(n))), ""
    )
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    return endpoint.rstrip("/")


def _settings(
    uri: str, options: dict[str, str]
) -> tuple[str, str, str, str, tuple[str | None, ...]]:
    """Region, endpoint, scheme, certificates, and the identity in the environment."""
    endpoint = _endpoint(options)
    region = options.get("region", "")
    if not region and endpoint:
        region = next((v for n in _REGIONS if (v := os.environ.get(n))), "us-east-1")
    elif not region:
        with storage_errors(uri):
            region = _region_of(without_query(uri).removeprefix("s3://").partition("/")[0])
    identity = tuple(os.environ.get(name) for name in _IDENTITY)
    return (
        region,
        endpoint,
        options.get("scheme", "https"),
        options.get("tls_ca_file_path", ""),
        identity,
    )


@functools.lru_cache(maxsize=64)
def _region_of(bucket: str) -> str:
    return str(pyarrow.fs.resolve_s3_region(bucket))


@functools.lru_cache(maxsize=16)
def _s3_filesystem(
    region: str, endpoint: str, scheme: str, certificates: str, identity: tuple[str | None, ...]
) -> pyarrow.fs.FileSystem:
    """One filesystem for all URIs of a server, because creating one costs as much as several
    requests.
    """
    return pyarrow.fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint or None,
        scheme=scheme,
        tls_ca_file_path=certificates or None,
        connect_timeout=CONNECT_S,
        request_timeout=READ_TIMEOUT_S,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )
