#!/bin/sh
# The entry point of a container that Docker restarts: runs the command and ends with its exit code. A command that ends with code 2 says
# that its configuration is wrong, which starting it again does not change, and `restart: unless-stopped` would do so for ever: the
# container then stays, unhealthy, until it is stopped. Somebody at a terminal (docker compose run) gets the code at once.
command=
stopped=
trap 'stopped=1; [ -z "$command" ] || kill -TERM "$command" 2> /dev/null' TERM INT
"$@" &
command=$!
[ -z "$stopped" ] || kill -TERM "$command"  # the signal came before the command had a number
wait "$command"
code=$?
# A signal ends `wait` early; the command drains meanwhile.
while kill -0 "$command" 2> /dev/null; do
  wait "$command"
  code=$?
done
if [ "$code" -ne 2 ] || [ -t 1 ]; then
  exit "$code"
fi
echo "not started again, since that would not help: correct the configuration, then \`docker compose up -d\`" >&2
# In the background, for a shell runs a trap only when what it waits for in the foreground has ended.
sleep infinity > /dev/null 2>&1 &
trap 'kill "$!"; exit 2' TERM INT
wait
