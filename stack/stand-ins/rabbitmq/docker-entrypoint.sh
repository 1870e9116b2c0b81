#!/bin/bash
# Like the official image: runs RabbitMQ programs as `rabbitmq`, which owns the volume.
set -euo pipefail
if [[ "${1:-}" == rabbitmq* ]] && [ "$(id -u)" = 0 ]; then
  if [ "$1" = rabbitmq-server ]; then
    find /var/lib/rabbitmq \! -user rabbitmq -exec chown rabbitmq '{}' +
  fi
  exec setpriv --reuid=rabbitmq --regid=rabbitmq --clear-groups "$@"
fi
exec "$@"
