#!/bin/sh
# Runs a command again while it ends with 75 (waiting helps), and ends with its last exit code.
#   repeat.sh TIMES PAUSE COMMAND…     at most TIMES times, PAUSE seconds apart
if [ $# -lt 3 ]; then
    echo "usage: repeat.sh TIMES PAUSE COMMAND…" >&2
    exit 2
fi
times=$1 pause=$2
shift 2
while :; do
    "$@"
    code=$?
    times=$((times - 1))
    [ "$code" -eq 75 ] && [ "$times" -gt 0 ] || exit "$code"
    sleep "$pause"
done
