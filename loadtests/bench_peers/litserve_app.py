"""The job behind LitServe: one worker; requests that wait are taken together. Run by path in the peer's environment; argument: the port."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import litserve  # type: ignore[import-not-found]  # of the peer's environment

from loadtests.bench_peers.job import MOST_TOGETHER, Ranker, Reader, answer

# vLLM brings mcp, and LitServe then wants fastmcp too, though nothing here is a tool (findings/litserve_needs_fastmcp_beside_mcp.sh).
litserve.server._MCP_AVAILABLE = False


class Recommend(litserve.LitAPI):  # type: ignore[misc]  # a class of a package that is not there when types are checked
    """States, features, scores, answers of a batch."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's
        """Begin in the worker's process."""
        self._reader, self._ranker, self._runner = Reader(), Ranker(), asyncio.Runner()

    def predict(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer a batch."""

        async def read() -> list[Any]:
            return await asyncio.gather(*(self._reader.asked(one["user_id"], one["candidates"]) for one in requests))

        asked = self._runner.run(read())
        scored = self._ranker.scores(asked)
        return [answer(self._reader.spec, one.item_ids, scores_NT) for one, scores_NT in zip(asked, scored, strict=True)]


def main() -> None:
    """Serve until a signal comes."""
    # Without a timeout its worker asks the queue again and again, and keeps a core busy while nobody calls.
    api = Recommend(max_batch_size=MOST_TOGETHER, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
