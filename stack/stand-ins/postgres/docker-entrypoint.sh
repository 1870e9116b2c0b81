#!/bin/bash
# Like the official image: initialises an empty data folder, then runs the command as `postgres`.
set -euo pipefail

# As in the official image, the password ends up in the environment of the server if its file is named here.
password_from_file() {
  if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
    POSTGRES_PASSWORD=$(< "$POSTGRES_PASSWORD_FILE")
    export POSTGRES_PASSWORD
    unset POSTGRES_PASSWORD_FILE
  fi
}

as_postgres() {
  mkdir -p "$PGDATA"
  chmod 700 "$PGDATA"
  chmod 3775 /var/run/postgresql
  find "$PGDATA" /var/run/postgresql \! -user postgres -exec chown postgres '{}' +
  exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
}

initialise() {
  : "${POSTGRES_USER:=postgres}"
  : "${POSTGRES_DB:=$POSTGRES_USER}"
  if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "${POSTGRES_HOST_AUTH_METHOD:-}" != trust ]; then
    echo >&2 'error: the database is uninitialised and no superuser password is given'
    exit 1
  fi
  eval 'initdb --username="$POSTGRES_USER" --pwfile=<(printf "%s\n" "${POSTGRES_PASSWORD:-}")' "${POSTGRES_INITDB_ARGS:-}"
  printf '\nhost all all all %s\n' "${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >> "$PGDATA/pg_hba.conf"
  pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -p 5432" -w start
  if [ "$POSTGRES_DB" != postgres ]; then
    createdb -U "$POSTGRES_USER" --maintenance-db postgres "$POSTGRES_DB"
  fi
  for file in /docker-entrypoint-initdb.d/*.sql; do
    [ ! -e "$file" ] || psql -v ON_ERROR_STOP=1 --no-psqlrc -U "$POSTGRES_USER" -d "$POSTGRES_DB" -f "$file"
  done
  pg_ctl -D "$PGDATA" -m fast -w stop
}

if [ "$(basename "$0")" = docker-ensure-initdb.sh ]; then
  only_initialise=1
elif [ "${1:-}" != postgres ]; then
  exec "$@"
fi
password_from_file
if [ "$(id -u)" = 0 ]; then
  as_postgres "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initialise
fi
[ -n "${only_initialise:-}" ] || exec "$@"
