#!/bin/bash
# The Python backend's stub of tritonserver 2.51 (nvidia-pytriton 0.7.0) ignores PYTHONPATH and PYTHONHOME; the python3 that is first in PATH decides.
#
# A server that is started with PYTHONPATH pointing at a model's libraries does not find them, although each Python process that the same shell
# starts does: the stub initialises its interpreter isolated from these variables. It takes prefix and site-packages of the environment to which
# the first python3 in PATH belongs.
#
# Versions: nvidia-pytriton 0.7.0 (tritonserver 2.51), numpy 1.26.4, Python 3.11, Linux x86-64.
# Seen:     a plain python3 imports the probe from PYTHONPATH: True; the model does: False; its prefix is that of the first python3 in PATH: True
# Needs python3.11 with a shared libpython (or Debian's libpython3.11) and pip. Installs into a temporary folder, listens on loopback.
# Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2> /dev/null || true; wait 2> /dev/null || true; rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0 numpy==1.26.4
mkdir -p "$folder/models/probe/1" "$folder/backends/python" "$folder/libraries"
echo "VALUE = 1" > "$folder/libraries/a_library_of_the_model.py"
cat > "$folder/models/probe/config.pbtxt" << 'CONFIG'
name: "probe"
backend: "python"
max_batch_size: 0
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
CONFIG
cat > "$folder/models/probe/1/model.py" << 'MODEL'
import importlib.util
import json
import os
import sys


class TritonPythonModel:
    def initialize(self, args):
        seen = {"imports": importlib.util.find_spec("a_library_of_the_model") is not None, "prefix": sys.prefix}
        seen["variable"] = os.environ.get("PYTHONPATH", "")
        with open(os.environ["PROBE_OUT"], "w") as file:
            json.dump(seen, file)

    def execute(self, requests):
        return []
MODEL
triton=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pytriton/tritonserver
cp -r "$triton"/backends/python/. "$folder/backends/python/"
cp "$triton/python_backend_stubs/3.11/triton_python_backend_stub" "$folder/backends/python/"
chmod +x "$folder/backends/python/triton_python_backend_stub" "$triton/bin/tritonserver"
library=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
read -r http grpc < <("$python" -c '
import socket
pair = [socket.socket() for _ in range(2)]
for one in pair: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in pair))')
export PYTHONPATH="$folder/libraries" PROBE_OUT="$folder/seen.json" PATH="$folder/venv/bin:$PATH"
plain=$(python3 -c 'import importlib.util; print(importlib.util.find_spec("a_library_of_the_model") is not None)')
LD_LIBRARY_PATH="$library:$(dirname "$(dirname "$triton")")/nvidia_pytriton.libs" "$triton/bin/tritonserver" \
  --model-repository "$folder/models" --backend-directory "$folder/backends" --http-address 127.0.0.1 --http-port "$http" \
  --grpc-address 127.0.0.1 --grpc-port "$grpc" --allow-metrics false > "$folder/triton.log" 2>&1 &
server=$!
for _ in $(seq 600); do [ -s "$folder/seen.json" ] && break; kill -0 "$server" || { tail -20 "$folder/triton.log" >&2; exit 1; }; sleep 0.3; done
sleep 1
read -r imports variable prefix < <(python3 -c '
import json, os, sys
seen = json.load(open(os.environ["PROBE_OUT"]))
print(seen["imports"], seen["variable"] == os.environ["PYTHONPATH"], os.path.realpath(seen["prefix"]) == os.path.realpath(sys.prefix))')
echo "a plain python3 imports the probe from PYTHONPATH: $plain; the model does: $imports; its prefix is that of the first python3 in PATH: $prefix"
if [ "$plain $variable $imports $prefix" != "True True False True" ]; then
  echo "another behaviour than the one that this finding describes (the model sees the variable: $variable)" >&2
  exit 1
fi
