#!/bin/bash
# Puts Docker Compose v2 into a folder, as one program that needs no engine to check a file: compose_plugin.sh FOLDER
# Debian 12 has no package of it; Debian 13's needs nothing newer than Debian 12's libc, so its one binary is taken out of the package.
# Nothing is installed. The package comes from the mirror that this machine's apt is set up with.
set -euo pipefail

folder=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$folder" "$work/lists/partial" "$work/cache/archives/partial" "$work/parts"
# shellcheck disable=SC2016  # $(REPO_URI) is apt's to expand
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | awk '/\/debian\/?$/ && !seen++')
if [[ -z $mirror ]]; then
  echo "apt here has no Debian mirror set up" >&2
  exit 1
fi
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$work/sources"
options=(-q -o "Dir::Etc::sourcelist=$work/sources" -o "Dir::Etc::sourceparts=$work/parts" -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
cd "$work"
apt-get "${options[@]}" update
apt-get "${options[@]}" download docker-compose
dpkg -x ./*.deb unpacked
cp unpacked/usr/libexec/docker/cli-plugins/docker-compose "$folder/docker-compose"
