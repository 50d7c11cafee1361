"""A stand-in for Triton's gRPC endpoint that answers at once: what is measured is the recommender's side of the call. Prints its port."""

from __future__ import annotations

import sys
from concurrent import futures
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient is not analysed, so its classes are Any
    """Scores an item by the lowest bits of its key."""

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: ARG002 - gRPC's signature
        """Answer SCORES [N, 2] and VERSION [3], and what else a caller asks for that names no outputs."""
        item_keys = np.frombuffer(request.raw_input_contents[1], dtype=np.int64)
        scores_N = (item_keys % 997).astype(np.float32) / 1_000
        tensors = {
            "SCORES": ("FP32", np.column_stack([scores_N, scores_N])),
            "VERSION": ("INT64", np.array([3, 41, 42])),
            "WATERMARK_MS": ("INT64", np.array([1_000])),
            "USER_ROW_CRC": ("INT64", np.array([7])),
        }
        response = service_pb2.ModelInferResponse(model_name="ranker")
        wanted = {output.name for output in request.outputs} or tensors.keys()
        for name, (datatype, values) in tensors.items():
            if name in wanted:
                response.outputs.add(name=name, datatype=datatype, shape=values.shape)
                response.raw_output_contents.append(np.ascontiguousarray(values).tobytes())
        return response


def main() -> None:
    """Serve until standard input is closed."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(StandIn(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0)


if __name__ == "__main__":
    main()
