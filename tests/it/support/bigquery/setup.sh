#!/usr/bin/env bash
# Builds the Python environment in which the tests run the BigQuery emulator: local-bigquery, from PyPI and nothing else.
#
#   tests/it/support/bigquery/setup.sh [FOLDER]        default target/bigquery-venv; PYTHON=... names the interpreter
#
# A folder that is complete already is left as it is. Two things are not as the packages declare them:
# * local-bigquery asks for a DuckDB that downloads its extensions when it starts. DuckDB 1.5.5 works as well, and its
#   extensions are wheels on PyPI, so that is installed and the extensions are linked to where DuckDB looks for them.
# * It declares Python 3.13. Python 3.12 runs it as it is, and 3.11 after two lines are put into older syntax.
set -euo pipefail

duckdb=1.5.5
folder=${1:-target/bigquery-venv}
stamp="local-bigquery 0.4.0, duckdb $duckdb, 1"

if [ "$(cat "$folder/complete" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi

python=${PYTHON:-}
for candidate in python3.13 python3.14 python3.12 python3.11 python3; do
    if [ -z "$python" ] && path=$(command -v "$candidate") &&
        "$path" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$path
    fi
done
if [ -z "$python" ]; then
    echo "The BigQuery emulator needs Python 3.11 or newer with venv: apt-get install python3-venv" >&2
    exit 1
fi

rm -rf "$folder"
mkdir -p "$folder"
# The links below must not depend on the folder that we are started in.
folder=$(cd "$folder" && pwd)
"$python" -m venv "$folder"

pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
numpy=$("$folder/bin/python" -c 'import sys; print("numpy==2.5.5" if sys.version_info >= (3, 12) else "numpy<2.5")')
"${pip[@]}" "duckdb==$duckdb" "duckdb-extension-icu==$duckdb" "duckdb-extension-json==$duckdb" \
    "duckdb-extension-ducklake==$duckdb" "duckdb-extension-spatial==$duckdb" "$numpy" fastapi==0.165.0 \
    fastavro==1.13.1 google-cloud-bigquery-storage==2.43.0 grpcio==1.85.1 mini-racer==0.14.1 pyarrow==26.0.1 \
    pydantic-settings==2.16.3 sqlglot==30.30.0 uvicorn==0.54.0 prompt-toolkit==3.0.53 pygments==2.21.0
"${pip[@]}" --no-deps --ignore-requires-python local-bigquery==0.4.0

"$folder/bin/python" - <<'PYTHON'
import pathlib
import re
import sys
import sysconfig

if sys.version_info < (3, 12):
    package = pathlib.Path(sysconfig.get_paths()["purelib"]) / "local_bigquery"
    metadata = package / "catalog/metadata.py"
    text = re.sub(r"def (\w+)\[R: Resource\]\(", r"def \1(", metadata.read_text())
    metadata.write_text("from __future__ import annotations\n" + text)
    results = package / "engine/results.py"
    quoting = """message.replace("'", "''")"""
    results.write_text(results.read_text().replace(quoting, "message.replace(chr(39), chr(39) * 2)"))
PYTHON

platform=$("$folder/bin/python" -c 'import duckdb; print(duckdb.sql("PRAGMA platform").fetchone()[0])')
extensions="$folder/home/.duckdb/extensions/v$duckdb/$platform"
mkdir -p "$extensions"
ln -sf "$folder"/lib/python3.*/site-packages/duckdb_extension_*/extensions/v$duckdb/*.duckdb_extension "$extensions/"
HOME="$folder/home" "$folder/bin/python" -c '
import duckdb
for name in ("icu", "json", "ducklake", "spatial"):
    duckdb.connect().execute(f"LOAD {name}")'
echo "$stamp" >"$folder/complete"
