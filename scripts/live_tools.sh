#!/bin/sh
# What the exhaustive tests of serving/ want beside the environment: a browser, a proxy, and the
# Python packages that drive them. On Debian and its kin, as root.
# usage: sh scripts/live_tools.sh [.venv]
set -eu
venv=${1:-.venv}
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium nginx-light fonts-inter
"$venv/bin/python" -m pip install -q -c constraints.txt axe-playwright-python playwright schemathesis
