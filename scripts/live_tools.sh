#!/bin/sh
# What the long tests of serving/ want beside the environment: a browser, a proxy, and the Python
# packages that drive them. What cannot be had is named, and the tests that need it are skipped.
# usage: sh scripts/live_tools.sh [.venv]
set -u
venv=${1:-.venv}
say() { echo "live tools: $*"; }

missing=
{ command -v chromium || command -v chromium-browser; } >/dev/null 2>&1 ||
    missing="chromium fonts-inter"
[ -x /usr/sbin/nginx ] || command -v nginx >/dev/null 2>&1 || missing="$missing nginx-light"
if [ -n "$missing" ]; then
    say "installing $missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # several names
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null ||
        say "apt-get cannot install $missing (Debian or Ubuntu, as root): those tests are skipped"
fi
packages="axe-playwright-python playwright schemathesis"
# shellcheck disable=SC2086 # several names
"$venv/bin/python" -c 'import axe_playwright_python, playwright, schemathesis' 2>/dev/null ||
    "$venv/bin/python" -m pip install -q -c constraints.txt $packages ||
    say "pip cannot install $packages: those tests are skipped"
