#!/usr/bin/env bash
# A node in the foreground, with the settings of redis.conf.example and its data in .data.
# usage: node.sh <module> <maosctl>
set -euo pipefail
cd "$(dirname "$0")/.."

module=$1 maosctl=$2
server=${MAOS_SERVER:-redis-server}

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

port=${PORT:-6379}
while is_taken "$port"; do
    echo "port $port is taken" >&2
    ((port += 1))
done

data=$PWD/.data/$port
mkdir -p "$data"

# The example's settings, but for those that are this node's own.
{
    grep -vE '^[[:space:]]*(loadmodule|port|dir|daemonize|logfile)[[:space:]]' redis.conf.example
    printf 'port %s\ndir "%s"\nloadmodule "%s"\n' "$port" "$data" "$module"
} >"$data/redis.conf"

cat <<TEXT
A node with maos will listen on port $port; Ctrl-C stops it. Its data is kept in .data/$port. To connect:

    redis-cli -p $port MAOS.SET app:plan:1 hello
    redis-cli -p $port MAOS.GET app:plan:1 FULL
    REDIS_STATE_URLS=redis://127.0.0.1:$port/ $maosctl info

TEXT
exec "$server" "$data/redis.conf"
