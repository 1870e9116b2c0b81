# Makes a Debian of the suite $3 with packages in the folder $1, downloaded from the mirror $2, or from
# the default one of debootstrap if that is empty. The packages up to "--" come from unstable, the ones
# after it from the suite.
#
# Runs in a mount and a process namespace of its own: what it mounts and starts ends with it.
set -eu
root=$1 mirror=$2 suite=$3
shift 3
export DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8

debootstrap --variant=minbase "$suite" "$root" ${mirror:+"$mirror"}
mirror=$(sed -n 's/^deb \([^ ]*\) .*/\1/p' "$root/etc/apt/sources.list")
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"

cp -L /etc/resolv.conf "$root/etc/resolv.conf"
printf '127.0.0.1 localhost\n::1 localhost\n' > "$root/etc/hosts"
# Installing a server must neither start it nor make data for it.
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
mkdir -p "$root/etc/postgresql-common"
echo 'create_main_cluster = false' > "$root/etc/postgresql-common/createcluster.conf"

cat > "$root/etc/apt/apt.conf.d/90stack" <<END
APT::Default-Release "$suite";
APT::Install-Recommends "false";
// A mirror may be a frozen copy, whose lists have run out.
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
Dpkg::Options { "--force-confold"; };
END

apt() {
  chroot "$root" apt-get -y -q "$@"
}

install_unstable() {
  echo "deb $mirror sid main" > "$root/etc/apt/sources.list.d/sid.list"
  apt update
  apt install -t sid "$@"
}

unstable=
while [ "$1" != -- ]; do
  unstable="$unstable $1"
  shift
done
shift
if [ -n "$unstable" ]; then
  install_unstable $unstable
else
  apt update
fi
apt install "$@"
apt clean
rm -rf "$root"/var/lib/apt/lists/*
