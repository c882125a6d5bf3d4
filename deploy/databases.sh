#!/bin/sh
# Creates the databases mlflow and optuna, each with a role that owns it, on the PostgreSQL server that PGHOST, PGUSER
# and PGPASSWORD name; that user must be a superuser. Run it again to change the passwords. Another file of settings than
# deploy/env is given by a path with a slash.
set -eu
here=$(dirname "$0")
set -a
. "${1:-$here/env}"
set +a
exec psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres --file "$here/databases.sql"
