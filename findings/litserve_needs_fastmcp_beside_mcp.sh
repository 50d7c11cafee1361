#!/bin/bash
# LitServe 0.2.19: no server starts where the package mcp is installed and fastmcp is not, though nothing that it serves is a tool of MCP.
#
# One expects an optional extra to be left alone unless it is asked for, or to be named when it is missing. mcp comes with other packages (vLLM,
# say), so a server that ran in one environment ends in another before it has loaded its model, with a NameError. The server looks for mcp; the
# module that it then uses looks for fastmcp, and without it does not import what it is about to call.
#
# Versions: litserve 0.2.19, mcp 2.3.0; Python 3.11.
# Seen:     without mcp: answers {'output': 16}
#           with mcp:    NameError: name 'MCPServer' is not defined
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check litserve==0.2.19
cat > "$folder/server.py" << 'PYTHON'
import sys

import litserve


class Square(litserve.LitAPI):
    def setup(self, device):
        self.power = 2

    def decode_request(self, request):
        return request["input"]

    def predict(self, number):
        return number**self.power

    def encode_response(self, output):
        return {"output": output}


if __name__ == "__main__":
    server = litserve.LitServer(Square(), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
PYTHON
cat > "$folder/look.py" << 'PYTHON'
import json
import socket
import subprocess
import sys
import time
import urllib.request

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
process = subprocess.Popen(
    [sys.executable, sys.argv[1], str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
)
said = None
while said is None and process.poll() is None:
    try:
        body = json.dumps({"input": 4}).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            said = f"answers {json.load(answer)}"
    except OSError:
        time.sleep(0.2)
if said is None:
    said = process.stdout.read().strip().splitlines()[-1]
else:
    import os
    import signal

    os.killpg(process.pid, signal.SIGKILL)
print(said)
PYTHON
without=$("$folder/venv/bin/python" "$folder/look.py" "$folder/server.py")
echo "without mcp: $without"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check mcp==2.3.0
with=$("$folder/venv/bin/python" "$folder/look.py" "$folder/server.py")
echo "with mcp:    $with"
if [ "$without" != "answers {'output': 16}" ] || [ "$with" != "NameError: name 'MCPServer' is not defined" ]; then
  echo "another behaviour than the one that this finding describes" >&2
  exit 1
fi
