"""The object store in S3-compatible buckets: `s3://bucket/prefix/<first two digits>/<sha256>` for each zone.

An object is written by one conditional request (If-None-Match) that carries its SHA-256, so the store itself refuses
damaged bytes and never replaces what is there. Credentials come from the environment as boto3 finds them, so that a
service's zone can also be closed to it by the store's own policy.
"""

import hashlib
import secrets
from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import ErrorCode, StepwedgeError
from shared.objects import Stored, Zone, corrupt, is_digest, not_found, not_opened, sweep, validated

_ABSENT = frozenset({"NoSuchKey", "NotFound", "404"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"})
# 412: it is there already. 409: another writer of the same key is at work.
_TAKEN = frozenset({"PreconditionFailed", "412"})
_CONTENDED = frozenset({"ConditionalRequestConflict", "409"})


class S3Store:
    """An `ObjectStore` behind an S3-compatible API.

    Parameters
    ----------
    places
        "s3://bucket/prefix" of each zone that is open.
    scratch
        Local folder where objects wait while they are received.
    endpoint, region, ca
        URL of the store, its region, and a file of CA certificates; empty for the library's defaults.
    """

    def __init__(
        self, places: Mapping[Zone, str], *, scratch: Path, endpoint: str = "", region: str = "", ca: str = ""
    ) -> None:
        self._places = {zone: _split(place) for zone, place in places.items()}
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep(scratch)
        self._client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint or None,
            region_name=region or None,
            verify=ca or None,
            config=Config(
                connect_timeout=5,
                read_timeout=30,
                retries={"mode": "standard", "total_max_attempts": 3},
                s3={"addressing_style": "path"} if endpoint else {},
            ),
        )

    def put(self, zone: Zone, data: bytes | memoryview) -> Stored:
        """See `ObjectStore.put`."""
        body = bytes(data)
        return self._put(zone, body, hashlib.sha256(body), len(body))

    def put_file(self, zone: Zone, path: Path, sha256: str = "") -> Stored:
        """See `ObjectStore.put_file`; the digest is taken anew, as it travels along and the store checks it."""
        if path.parent != self._scratch:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the file was not named by new_temporary")
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
                size = file.tell()
                file.seek(0)
                return self._put(zone, file, digest, size)
        finally:
            path.unlink(missing_ok=True)

    def place(self, zone: Zone, path: Path, sha256: str) -> Stored:
        """See `ObjectStore.place`; what the store has answered for is durable."""
        return self.put_file(zone, path, sha256)

    def settle(self, zone: Zone, sha256: str) -> None:
        """See `ObjectStore.settle`."""
        if not self.exists(zone, sha256):
            raise not_found(zone)

    def new_temporary(self, zone: Zone) -> Path:
        """See `ObjectStore.new_temporary`."""
        self._place(zone)
        return self._scratch / secrets.token_hex(16)

    def get(self, zone: Zone, sha256: str) -> bytes:
        """See `ObjectStore.get`."""
        where = self._where(zone, sha256)
        with _translated(zone, absent=_ABSENT):
            data: bytes = self._client.get_object(**where)["Body"].read()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise corrupt(zone)
        return data

    def exists(self, zone: Zone, sha256: str) -> bool:
        """See `ObjectStore.exists`."""
        return self._size(zone, sha256) is not None

    def check(self, zone: Zone) -> None:
        """See `ObjectStore.check`; how much room is left is the store's own business."""
        bucket, _ = self._place(zone)
        with _translated(zone):
            self._client.head_bucket(Bucket=bucket)

    def space(self, zone: Zone) -> None:
        """See `ObjectStore.space`; how much room is left is the store's own business."""
        self._place(zone)

    def inventory(self, zone: Zone) -> Iterator[tuple[str, int]]:
        """See `ObjectStore.inventory`."""
        bucket, prefix = self._place(zone)
        with _translated(zone):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for one in page.get("Contents", ()):
                    name = one["Key"].removeprefix(prefix)[3:]  # behind the first two digits
                    if is_digest(name):
                        yield name, int(one["Size"])

    def _put(self, zone: Zone, body: bytes | BinaryIO, digest: "hashlib._Hash", size: int) -> Stored:
        sha256 = digest.hexdigest()
        where = self._where(zone, sha256)
        if self._size(zone, sha256) == size:
            return Stored(sha256, size, created=False)
        with _translated(zone):
            for _ in range(3):
                try:
                    self._client.put_object(
                        **where,
                        Body=body,
                        ContentLength=size,
                        ChecksumSHA256=b64encode(digest.digest()).decode(),
                        IfNoneMatch="*",
                    )
                except ClientError as error:
                    code = _code(error)
                    if code in _TAKEN:
                        return Stored(sha256, size, created=False)
                    if code not in _CONTENDED:
                        raise
                else:
                    return Stored(sha256, size, created=True)
        raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the object store is contended")

    def _size(self, zone: Zone, sha256: str) -> int | None:
        where = self._where(zone, sha256)
        try:
            with _translated(zone, absent=_ABSENT):
                return int(self._client.head_object(**where)["ContentLength"])
        except StepwedgeError as error:
            if error.code == ErrorCode.ERROR_CODE_OBJECT_NOT_FOUND:
                return None
            raise

    def _place(self, zone: Zone) -> tuple[str, str]:
        try:
            return self._places[zone]
        except KeyError:
            raise not_opened(zone) from None

    def _where(self, zone: Zone, sha256: str) -> dict[str, str]:
        bucket, prefix = self._place(zone)
        return {"Bucket": bucket, "Key": f"{prefix}{validated(sha256)[:2]}/{sha256}"}


def _split(place: str) -> tuple[str, str]:
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    return bucket, f"{prefix}/" if prefix else ""


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _translated(zone: Zone, *, absent: Collection[str] = ()) -> Iterator[None]:
    """Turn the library's errors into ours; the codes in `absent` mean that the object is not there."""
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in absent:
            raise not_found(zone) from None
        if code in _FULL:
            raise StepwedgeError(ErrorCode.ERROR_CODE_STORAGE_FULL, "no space is left in the object store") from error
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the object store refused the request"
        ) from error
    except (BotoCoreError, OSError) as error:
        raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the object store does not answer") from error
