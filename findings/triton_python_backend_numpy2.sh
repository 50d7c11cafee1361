#!/bin/bash
# The Python backend of tritonserver 2.51, as packaged by nvidia-pytriton 0.7.0, reads the wrong numbers from inputs under numpy 2, without an error.
#
# The backend's stub was built against numpy 1. In an environment with numpy 2 the model loads and requests succeed, but as_numpy() of the
# input [1, 2, 4] is [1, 1, 1] (the strides are read from another place), and an output made by pb_utils.Tensor(name, array) is refused for its size
# on the way out. The wheel asks for numpy<2; who installs it with --no-deps beside numpy 2 (torch and vLLM bring it) is told nothing.
# DLPack (numpy.from_dlpack on inputs, pb_utils.Tensor.from_dlpack for outputs) does not depend on numpy's layout and is right.
#
# Versions: nvidia-pytriton 0.7.0 (tritonserver 2.51), numpy 2.4.6 against 1.26.4, Python 3.11, Linux x86-64.
# Seen:     numpy 1.26.4, in and out by array: [3] [2.0, 3.0, 5.0]
#           numpy 2.4.6, out by array: HTTP 500 (size of the output), in by array: [3] [2.0, 2.0, 2.0], both by DLPack: [3] [2.0, 3.0, 5.0]
# Needs python3.11 with a shared libpython (or Debian's libpython3.11) and pip. Installs into a temporary folder, listens on loopback.
# Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2> /dev/null || true; wait 2> /dev/null || true; rm -rf "$folder"' EXIT
mkdir -p "$folder/models/adder/1"
cat > "$folder/models/adder/config.pbtxt" << 'CONFIG'
name: "adder"
backend: "python"
max_batch_size: 0
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "HOW" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
CONFIG
cat > "$folder/models/adder/1/model.py" << 'MODEL'
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Adds one. HOW + 1: out by DLPack, else by pb_utils.Tensor(name, array). HOW + 2: in by as_numpy(), else by DLPack."""

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X")
            how = int(np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "HOW"))[0])
            y = ((x.as_numpy() if how & 2 else np.from_dlpack(x)) + 1).astype(np.float32)
            tensor = pb_utils.Tensor.from_dlpack("Y", y) if how & 1 else pb_utils.Tensor("Y", y)
            answers.append(pb_utils.InferenceResponse([tensor]))
        return answers
MODEL

# $1: the version of numpy; the rest: values of HOW. Prints what the server answers to [1, 2, 4] for each.
answers() {
  local venv="$folder/venv-$1" triton backend library
  python3.11 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0 "numpy==$1"
  triton=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pytriton/tritonserver
  backend="$folder/backends-$1/python"
  mkdir -p "$backend"
  cp -r "$triton"/backends/python/. "$backend/"
  cp "$triton/python_backend_stubs/3.11/triton_python_backend_stub" "$backend/"
  chmod +x "$backend/triton_python_backend_stub" "$triton/bin/tritonserver"
  library=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
  local http grpc
  read -r http grpc < <("$venv/bin/python" -c '
import socket
pair = [socket.socket() for _ in range(2)]
for one in pair: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in pair))')
  # The stub takes the environment whose python3 is first in PATH.
  PATH="$venv/bin:$PATH" LD_LIBRARY_PATH="$library:$(dirname "$(dirname "$triton")")/nvidia_pytriton.libs" \
    "$triton/bin/tritonserver" --model-repository "$folder/models" --backend-directory "$folder/backends-$1" --http-address 127.0.0.1 \
    --http-port "$http" --grpc-address 127.0.0.1 --grpc-port "$grpc" --allow-metrics false > "$folder/triton-$1.log" 2>&1 &
  server=$!
  "$venv/bin/python" - "$http" "${@:2}" << 'PYTHON' || { tail -20 "$folder/triton-$1.log" >&2; return 1; }
import json
import sys
import time
import urllib.error
import urllib.request

base = f"http://127.0.0.1:{sys.argv[1]}/v2"
deadline = time.monotonic() + 180
while True:
    try:
        urllib.request.urlopen(f"{base}/health/ready", timeout=5).close()
        break
    except (urllib.error.URLError, OSError):
        if time.monotonic() > deadline:
            sys.exit("tritonserver did not become ready in 180 s")
        time.sleep(0.5)
said = []
for how in map(int, sys.argv[2:]):
    inputs = [
        {"name": "X", "shape": [3], "datatype": "FP32", "data": [1.0, 2.0, 4.0]},
        {"name": "HOW", "shape": [1], "datatype": "INT32", "data": [how]},
    ]
    request = urllib.request.Request(f"{base}/models/adder/infer", data=json.dumps({"inputs": inputs}).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            output = json.load(answer)["outputs"][0]
        said.append(f"{output['shape']} {output['data']}")
    except urllib.error.HTTPError as error:
        said.append(f"HTTP {error.code}: {json.load(error)['error']}")
print(" and ".join(said))
PYTHON
  kill "$server"
  wait "$server" 2> /dev/null || true
  server=
}

one=$(answers 1.26.4 2)
two=$(answers 2.4.6 0 3 1)
echo "numpy 1.26.4, in and out by array: $one"
echo "numpy 2.4.6, out by array, in by array, both by DLPack: $two"
if [ "$one" != "[3] [2.0, 3.0, 5.0]" ] || [ "$two" != "HTTP 500: output tensor shape does not match size of output for 'Y' and [3] [2.0, 2.0, 2.0] and [3] [2.0, 3.0, 5.0]" ]; then
  echo "another behaviour than the one that this finding describes" >&2
  exit 1
fi
