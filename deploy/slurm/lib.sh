# shellcheck shell=bash
# What all job scripts share: where things are, how a service is found, how one is served.
# submit.sh exports FRONTDESK_TRIAL (the trial's folder, on a file system that all nodes see), FRONTDESK_SLURM (this folder), FRONTDESK_PYTHON.
set -euo pipefail

config=$FRONTDESK_TRIAL/config.yaml
endpoints=$FRONTDESK_TRIAL/endpoints
FRONTDESK_ADMIN_KEY=${FRONTDESK_ADMIN_KEY:-$(cat "$FRONTDESK_TRIAL/admin_key")}
export FRONTDESK_ADMIN_KEY
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# The name under which other nodes reach this one.
host=${FRONTDESK_ADVERTISE_HOST:-$(hostname)}

# Prints a value of the config: setting services.trainer.port
setting() {
  "$FRONTDESK_PYTHON" -c '
import functools, pathlib, sys
from services.common.config import load_config
print(functools.reduce(getattr, sys.argv[2].split("."), load_config(pathlib.Path(sys.argv[1]))))' "$config" "$1"
}

# Says that a service answers: register NAME URL. Written beside and renamed, so that nobody reads half of it.
register() {
  mkdir -p "$endpoints"
  echo "$2" >"$endpoints/.$1.$$"
  mv "$endpoints/.$1.$$" "$endpoints/$1"
  echo "$1: $2"
}

# Prints the URL of a service, as soon as it has one: endpoint NAME
endpoint() {
  local waited=0
  until [[ -s $endpoints/$1 ]]; do
    if ((waited++ >= 2 * ${FRONTDESK_WAIT_S:-900})); then
      echo "$1 did not register in $endpoints, see its log" >&2
      return 1
    fi
    sleep 0.5
  done
  cat "$endpoints/$1"
}

# Not the admin key itself: this one ends up in URLs.
redis_password() {
  printf 'redis %s' "$FRONTDESK_ADMIN_KEY" | sha256sum | cut -c1-64
}

# Runs a service, waiting first for those it calls: serve NAME [NAME it calls…]
serve() {
  local name=$1 called url port variable
  for called in "${@:2}"; do
    url=$(endpoint "$called")
    variable=FRONTDESK_${called^^}_URL
    export "$variable=$url"
  done
  port=$(setting "services.$name.port")
  "$FRONTDESK_PYTHON" -P -m "services.$name" --config "$config" --host 0.0.0.0 --port "$port" &
  service=$!
  until answers "http://127.0.0.1:$port/healthz"; do
    alive
    sleep 0.5
  done
  register "$name" "http://$host:$port"
}

# Ends the job as the service ended, once it has.
alive() {
  if ! kill -0 "$service" 2>/dev/null; then
    wait "$service"
    exit
  fi
}

# Prints the phase of the experiment, as the trainer at URL says: phase_at URL
phase_at() {
  "$FRONTDESK_PYTHON" -I -c '
import json, os, sys, urllib.request as u
request = u.Request(sys.argv[1] + "/v1/experiment", headers={"Authorization": "Bearer " + os.environ["FRONTDESK_ADMIN_KEY"]})
print(json.load(u.urlopen(request, timeout=30))["phase"])' "$1" || echo unknown
}

# Whether a URL is answered with success.
answers() {
  "$FRONTDESK_PYTHON" -I -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' "$1" 2>/dev/null
}
