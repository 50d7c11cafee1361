#!/bin/bash
# Ray 2.60.0: once a program has called `ray.init()` for a cluster of its own, programs of the same user can no longer join clusters that
# `ray start --head` starts, though neither asked for authentication.
#
# One expects a throw-away local cluster to leave nothing behind. It leaves a token in ~/.ray/auth_token. From then on `ray start --head` finds it and
# asks every client for it; but `ray.init(address=...)` sends it only where RAY_AUTH_MODE=token is set, so the command that joined the cluster
# yesterday is refused today, after twenty seconds of InvalidAuthToken. RAY_AUTH_MODE=token for the client, or =disabled for all, puts it right.
#
# Versions: ray 2.60.0; Python 3.11.
# Seen:     before any ray.init(): joined
#           ray.init() of its own leaves: auth_token
#           after it: ConnectionError
#           with RAY_AUTH_MODE=token: joined
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d /tmp/ray-XXXX)
export HOME="$folder/home" RAY_USAGE_STATS_ENABLED=0
mkdir "$HOME"
head=
trap '[ -z "$head" ] || kill -- "-$head" 2> /dev/null || true; sleep 2; rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check ray==2.60.0
cat > "$folder/join.py" << 'PYTHON'
import sys

import ray

try:
    ray.init(address=sys.argv[1], log_to_driver=False)
    print("joined")
except Exception as error:
    print(type(error).__name__)
PYTHON
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
joined() { # NAME=VALUE... of the client; sets `said`
  setsid "$folder/venv/bin/ray" start --head --block --port="$port" --node-ip-address=127.0.0.1 --num-cpus=1 --include-dashboard=false \
    --temp-dir="$folder/r$RANDOM" --object-store-memory=100000000 > "$folder/start.log" 2>&1 &
  head=$!
  until grep -q "Ray runtime started" "$folder/start.log"; do sleep 0.5; done
  said=$(env "$@" "$folder/venv/bin/python" "$folder/join.py" "127.0.0.1:$port" 2> /dev/null)
  kill -- "-$head"
  wait "$head" || true
  head=
}
joined
before=$said
echo "before any ray.init(): $before"
"$folder/venv/bin/python" -c 'import ray; ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000); ray.shutdown()' > /dev/null 2>&1
left=$(ls "$HOME/.ray")
echo "ray.init() of its own leaves: $left"
joined
after=$said
echo "after it: $after"
joined RAY_AUTH_MODE=token
with=$said
echo "with RAY_AUTH_MODE=token: $with"
if [ "$before/$left/$after/$with" != "joined/auth_token/ConnectionError/joined" ]; then
  echo "another behaviour than the one that this finding describes" >&2
  exit 1
fi
