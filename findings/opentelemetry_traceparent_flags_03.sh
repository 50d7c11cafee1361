#!/bin/bash
# opentelemetry-sdk 1.45.2 for Python: a sampled span's traceparent ends in 03 and an unsampled one's in 02; no context of its own ends in 01 or 00.
#
# Level 1 of W3C's Trace Context has one flag, so for years 01 meant sampled and 00 not, and code, log filters and proxies' rules compare the text.
# Level 2 adds a bit for "the trace id is random", and the SDK sets it in every trace that it starts: 03 and 02. Who compares with "01" counts each
# sampled trace as unsampled; who compares with "00" counts each unsampled one as sampled. Only the last bit says it.
#
# Versions: opentelemetry-sdk 1.45.2; Python 3.11.
# Seen:     sampled: 03
#           not sampled: 02
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check opentelemetry-sdk==1.45.2
"$folder/venv/bin/python" - << 'PYTHON'
import sys

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


def flags(sampler) -> str:
    headers: dict[str, str] = {}
    with TracerProvider(sampler=sampler).get_tracer("finding").start_as_current_span("span"):
        TraceContextTextMapPropagator().inject(headers)
    return headers["traceparent"].rpartition("-")[2]


sampled, unsampled = flags(ALWAYS_ON), flags(ALWAYS_OFF)
print(f"sampled: {sampled}")
print(f"not sampled: {unsampled}")
if (sampled, unsampled) != ("03", "02"):
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
