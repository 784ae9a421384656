#!/usr/bin/env bash
# Checks the types:  scripts/typecheck.sh MYPY
# The areas lie beside the package folder; mypy needs the tree that an installation has.
set -euo pipefail
mypy=$(realpath --no-symlinks "${1:?usage: scripts/typecheck.sh MYPY}")
cd "$(dirname "$0")/.."
root=$PWD
tree=$root/build/types

rm -rf "$tree"
mkdir -p "$tree/longlive_trt"
ln -s "$root"/longlive_trt/* "$tree/longlive_trt/"
for area in */__init__.py; do
    area=${area%/__init__.py}
    [ "$area" = longlive_trt ] || ln -s "$root/$area" "$tree/longlive_trt/$area"
done
rm -f "$tree/longlive_trt/__pycache__"
cd "$tree"
"$mypy" --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" -p longlive_trt
