# Runs a program inside the Debian in the folder $1. The pairs of paths up to "--", outside and inside, are
# made visible there; after that come the program and its arguments.
#
# Runs in a mount namespace of its own: its mounts are invisible to others, and disappear with the program.
# Every step ends in an exec, so that the program keeps the process id.
set -eu
root=$1
shift
# The Debian is kept for later runs and shared by all of them, so nothing may write to it.
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$root/var/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
while [ "$1" != -- ]; do
  [ -e "$root$2" ] || mkdir -p "$root$2"
  mount --rbind "$1" "$root$2"
  shift 2
done
shift
# The environment is the program's, whose PATH may have no sbin.
exec /usr/sbin/chroot "$root" "$@"
