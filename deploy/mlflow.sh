#!/bin/sh
# Starts the MLflow server with the settings of deploy/env, or of another file that is given by a path with a slash. They
# are variables, so no password is on a command line.
set -eu
set -a
. "${1:-$(dirname "$0")/env}"
set +a
exec python -m mlflow server
