"""The object store behind S3's API, over real HTTP on loopback against moto's server."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared.errors import StepwedgeError
from shared.objects import ObjectStore, Stored, Zone, open_store
from shared.settings import Objects

boto3 = pytest.importorskip("boto3", reason="needs the extra s3")
moto_server = pytest.importorskip("moto.server", reason="needs the package moto[server]")

DATA = b"bytes of an object" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    made = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    made.create_bucket(Bucket="bucket-original")
    yield made
    for listed in made.list_objects_v2(Bucket="bucket-original").get("Contents", []):
        made.delete_object(Bucket="bucket-original", Key=listed["Key"])


@pytest.fixture
def settings(endpoint: str, tmp_path: Path) -> Objects:
    return Objects(
        kind="s3",
        original="s3://bucket-original/a/prefix/",
        deidentified="s3://bucket-absent",
        s3_endpoint=endpoint,
        s3_region="us-east-1",
        scratch=tmp_path / "scratch",
    )


@pytest.fixture
def store(client: Any, settings: Objects) -> ObjectStore:
    return open_store(settings, set(Zone))


def test_what_was_put_is_got_back_and_lies_under_the_prefix(store: ObjectStore, client: Any) -> None:
    assert store.put(Zone.ORIGINAL, DATA) == Stored(DIGEST, len(DATA), created=True)
    assert store.put(Zone.ORIGINAL, memoryview(DATA)) == Stored(DIGEST, len(DATA), created=False)
    assert store.exists(Zone.ORIGINAL, DIGEST)
    assert store.get(Zone.ORIGINAL, DIGEST) == DATA
    listed = client.list_objects_v2(Bucket="bucket-original")["Contents"]
    assert [one["Key"] for one in listed] == [f"a/prefix/{DIGEST[:2]}/{DIGEST}"]
    store.check(Zone.ORIGINAL)


def test_a_file_is_taken_over_and_its_temporary_name_is_gone(store: ObjectStore, settings: Objects) -> None:
    for created in (True, False):
        temporary = store.new_temporary(Zone.ORIGINAL)
        temporary.write_bytes(DATA)
        assert store.put_file(Zone.ORIGINAL, temporary) == Stored(DIGEST, len(DATA), created=created)
        assert list(settings.scratch.iterdir()) == []
    assert store.get(Zone.ORIGINAL, DIGEST) == DATA


def test_an_absent_object_is_not_found_and_a_damaged_one_is_corrupt(store: ObjectStore, client: Any) -> None:
    assert not store.exists(Zone.ORIGINAL, DIGEST)
    with pytest.raises(StepwedgeError, match="OBJECT_NOT_FOUND"):
        store.get(Zone.ORIGINAL, DIGEST)
    client.put_object(Bucket="bucket-original", Key=f"a/prefix/{DIGEST[:2]}/{DIGEST}", Body=b"X" + DATA[1:])
    with pytest.raises(StepwedgeError, match="OBJECT_CORRUPT"):
        store.get(Zone.ORIGINAL, DIGEST)


def test_a_digest_that_is_none_never_becomes_a_key(store: ObjectStore) -> None:
    for trick in ("../other", "", "A" * 64, f"{DIGEST}/.."):
        for call in (store.get, store.exists):
            with pytest.raises(StepwedgeError, match="INVALID_REQUEST"):
                call(Zone.ORIGINAL, trick)


def test_a_zone_that_was_not_opened_is_closed(client: Any, settings: Objects) -> None:
    only = open_store(settings, {Zone.DEIDENTIFIED})
    with pytest.raises(StepwedgeError, match="PERMISSION_DENIED"):
        only.get(Zone.ORIGINAL, DIGEST)


def test_a_bucket_that_is_not_there_or_a_store_that_is_away_is_a_dependency_that_does_not_answer(
    store: ObjectStore, settings: Objects, free_port: Any
) -> None:
    for call in (lambda: store.check(Zone.DEIDENTIFIED), lambda: store.put(Zone.DEIDENTIFIED, DATA)):
        with pytest.raises(StepwedgeError, match="DEPENDENCY_UNAVAILABLE"):
            call()
    away = settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(StepwedgeError, match="DEPENDENCY_UNAVAILABLE") as raised:
        open_store(away, {Zone.ORIGINAL}).put(Zone.ORIGINAL, DATA)
    assert not raised.value.permanent


def test_many_writers_of_one_object_all_succeed_and_one_made_it(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: store.put(Zone.ORIGINAL, DATA), range(16)))
    assert {result.sha256 for result in results} == {DIGEST}
    assert any(result.created for result in results)
    assert store.get(Zone.ORIGINAL, DIGEST) == DATA


def test_the_inventory_lists_every_object_by_its_digest(store: ObjectStore, client: Any) -> None:
    made = {store.put(Zone.ORIGINAL, data).sha256: len(data) for data in (DATA, b"", b"another")}
    client.put_object(Bucket="bucket-original", Key="a/prefix/notes.txt", Body=b"not an object of ours")
    found = list(store.inventory(Zone.ORIGINAL))
    assert dict(found) == made
    assert found == sorted(found)
