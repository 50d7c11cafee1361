"""What of the documents' folder can be searched, and which files cannot, or only in part: the retriever's answer as a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunemesh.retriever.v1 import retriever_service_pb2 as pb
from tunemesh.retriever.v1 import retriever_service_pb2_grpc

from services.common.platform.errors import ServiceError
from services.mesh.operate.rpc import Client, connect

_STATUS_TIMEOUT_MS = 2_000
_MOST_NAMED = 5


def document(client: Client, *, timeout_ms: int) -> dict[str, Any]:
    """Return the document: index_version, passages (by source), refused and incomplete (reason by file, at most 100 each).

    Raises:
        Unavailable: the retriever does not answer, or has no index yet.
    """
    stub = retriever_service_pb2_grpc.RetrieverServiceStub(client.channel)  # type: ignore[no-untyped-call]
    status = client.call(stub.GetIndexStatus, pb.GetIndexStatusRequest(), timeout_ms=timeout_ms)
    return {
        "index_version": status.index_version,
        "passages": dict(sorted(status.passages_by_source.items())),
        "refused": dict(sorted(status.refused_files.items())),
        "incomplete": dict(sorted(status.incomplete_files.items())),
    }


def status_lines(target: str) -> Iterator[str]:
    """Yield what `tunemesh status` says of documents: nothing when all is well."""
    try:
        with connect("retriever", target) as client:
            found = document(client, timeout_ms=_STATUS_TIMEOUT_MS)
    except ServiceError as error:
        yield f"documents: not known: {error}"
        return
    for what, files in (("refused", found["refused"]), ("indexed in part", found["incomplete"])):
        yield from _lines(what, files)


def _lines(what: str, files: Mapping[str, str]) -> Iterator[str]:
    if not files:
        return
    yield f"documents: {len(files)}{' or more' if len(files) == 100 else ''} {what}"
    for name, reason in list(files.items())[:_MOST_NAMED]:
        yield f"  {name}: {reason}"
    if len(files) > _MOST_NAMED:
        yield "  … `tunemesh documents` names them all"
