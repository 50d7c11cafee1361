"""The retriever as a process, with a real broker, the real embedder and LanceDB: it follows its sources and comes back after a kill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest
from tunemesh.catalog.v1.catalog_item_pb2 import CatalogItem
from tunemesh.retriever.v1 import retriever_service_pb2 as pb
from tunemesh.retriever.v1 import retriever_service_pb2_grpc

from loadtests import movielens
from services.common.events.topics import CATALOG
from services.common.platform.kafka_producer import durable_producer
from tests.edge_fakes import ServiceProcess
from tests.limits import seconds

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

RENTALS = "# Rentals\n\nFilms go back within seven days.\n\n## Late fees\n\nEvery late day costs two euros.\n"


def send(bootstrap: str, *items: CatalogItem, deleted: tuple[str, ...] = ()) -> None:
    producer = durable_producer(bootstrap, client_id="test")
    sent = [producer.send(CATALOG.name, key=item.item_id.encode(), value=item.SerializeToString()) for item in items]
    sent += [producer.send(CATALOG.name, key=item_id.encode(), value=None) for item_id in deleted]
    for one in sent:
        one.get(seconds(20))
    producer.close()


class Client:
    """Calls a running retriever and waits for what its sources say to arrive."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = retriever_service_pb2_grpc.RetrieverServiceStub(self.channel)

    async def status(self) -> pb.GetIndexStatusResponse:
        return await self.stub.GetIndexStatus(pb.GetIndexStatusRequest(), timeout=seconds(10))

    async def search(self, query: str, **fields) -> pb.SearchResponse:
        return await self.stub.Search(pb.SearchRequest(query=query, **fields), timeout=seconds(10))

    async def ids(self, query: str, **fields) -> list[str]:
        return [passage.passage_id for passage in (await self.search(query, **fields)).passages]

    async def until(self, condition: Callable[[pb.GetIndexStatusResponse], bool], timeout_s: float = 60.0) -> float:
        started = time.monotonic()
        while True:
            try:
                status = await self.status()
                if condition(status):
                    return time.monotonic() - started
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                status = None
            assert time.monotonic() - started < seconds(timeout_s), f"it did not come true: {status}"
            await asyncio.sleep(0.1)


def environment(tmp_path: Path, bootstrap: str, embedder_folder: Path) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_MODELS_DIR": str(embedder_folder.parent),
        "TUNEMESH_RETRIEVER_PORT": "0",
        "TUNEMESH_RETRIEVER_POLL_MS": "200",
        "TUNEMESH_RETRIEVER_INDEX_DIR": str(tmp_path / "index"),
        "TUNEMESH_RETRIEVER_DOCUMENTS_DIR": str(tmp_path / "docs"),
    }


async def test_the_films_and_the_files_are_indexed_followed_and_there_again_after_a_kill(
    fresh_broker, mesh_topics, embedder_folder, tmp_path
):
    films = list(movielens.load_films().values())
    items = [CatalogItem(item_id=film.item_id, title=film.title, categories=film.categories) for film in films]
    await asyncio.to_thread(mesh_topics, fresh_broker.bootstrap)
    await asyncio.to_thread(send, fresh_broker.bootstrap, *items)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "rentals.md").write_text(RENTALS)
    (docs / "broken.txt").write_bytes(b"\xff\xff")
    variables = environment(tmp_path, fresh_broker.bootstrap, embedder_folder)

    with ServiceProcess("services.retriever", variables) as process:
        client = Client(await asyncio.to_thread(process.wait_ready))
        await client.until(lambda status: status.catalog_offset == len(films))
        status = await client.status()
        assert dict(status.passages_by_source) == {"catalog": len(films), "files": 2}
        assert "not UTF-8" in status.refused_files["broken.txt"]

        response = await client.search("when do I have to bring a movie back?", source="files")
        assert response.passages[0].passage_id == "rentals.md#1" and response.degraded_reason == ""
        assert (await client.ids("Toy Story (1995)"))[0] == "catalog:1"
        asked = films[::40]
        found = await asyncio.gather(*(client.ids(film.title) for film in asked))
        right = sum(f"catalog:{film.item_id}" in ids for film, ids in zip(asked, found, strict=True))
        assert right >= 0.95 * len(asked), f"{right} of {len(asked)} films are found by their titles"

        # Both sources are followed.
        (docs / "rentals.md").write_text(RENTALS.replace("two euros", "three zlotys"))
        (docs / "hours.html").write_text("<title>Hours</title><p>We open at noon.</p>")
        new = CatalogItem(item_id="9999", title="The Zyzzyva Affair (2026)", categories=["Thriller"])
        await asyncio.to_thread(send, fresh_broker.bootstrap, new, deleted=("1",))
        waited_s = await client.until(lambda status: status.catalog_offset == len(films) + 2 and status.passages_by_source["files"] == 3)
        assert waited_s < seconds(20)
        assert (await client.ids("zyzzyva"))[0] == "catalog:9999" and "catalog:1" not in await client.ids("Toy Story (1995)")
        assert "zlotys" in (await client.search("late fee", source="files")).passages[0].text
        (docs / "hours.html").unlink()
        await client.until(lambda status: status.passages_by_source["files"] == 2)
        version = (await client.status()).index_version
        await client.channel.close()
        process.kill()

    with ServiceProcess("services.retriever", variables) as process:
        client = Client(await asyncio.to_thread(process.wait_ready))
        await client.until(lambda status: status.catalog_offset == len(films) + 2)
        assert (await client.status()).index_version == version, "nothing changed, so nothing was indexed again"
        assert "documents indexed" not in process.log
        fresh_broker.kill()
        response = await client.search("zyzzyva")
        assert response.passages[0].passage_id == "catalog:9999"
        await client.channel.close()
        process.terminate()
        assert await asyncio.to_thread(process.wait) == 0

    # With the broker down from the start: what is on the disk answers, and says so.
    with ServiceProcess("services.retriever", {**variables, "TUNEMESH_RETRIEVER_CATALOG_WAIT_MS": "500"}) as process:
        client = Client(await asyncio.to_thread(process.wait_ready))
        await client.until(lambda status: status.num_passages == len(films) + 2)
        response = await client.search("zyzzyva")
        assert response.passages[0].passage_id == "catalog:9999" and response.degraded_reason.endswith("catalog_unavailable")
        await client.channel.close()
    assert "Traceback" not in process.log
