"""Runs the BigQuery emulator for the tests, on free loopback ports, until our standard input ends.

    HOME=VENV/home VENV/bin/python launch.py FOLDER

A line of JSON on standard output, {"port": PORT}, says that it answers. The folder is made, and removed at the end.
Whoever starts us keeps our standard input open: however that process ends, the pipe closes and we end too.

The emulator is local-bigquery, brought nearer to what BigQuery documents of load jobs from newline-delimited JSON:
* gzip bodies are decompressed, also those of several members;
* an unknown column, a missing REQUIRED one or a line that is not JSON is a bad record; more of them than maxBadRecords
  fail the job, each with an entry in status.errors that names the row's first byte in the decompressed rows.

Faults: POST /_fault {"match": "regex on METHOD path?query", "times": 1, "skip": 0, ...} with what shall happen:
    "status": 503, "reason": "backendError", "body": "...", "headers": {...}    this answer instead of the real one
    "when": "before" | "after"     whether the request is carried out first; before, unless told
    "drop": true                   no answer at all: the connection is reset
    "delay_ms": 500                a pause first
    "job": {"reason": ..., "message": ...}    for a job's upload: the job that it starts fails with this
GET /_fault lists the requests so far, each with its answer's status and its body's size.
"""

import asyncio
import contextlib
import gzip
import json
import os
import pathlib
import re
import shutil
import socket
import sys
import threading

import uvicorn
from local_bigquery.settings import settings

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
settings.data_dir = folder
settings.default_project_id = "emulated"

# Only now: these read the settings when they are imported.
from local_bigquery import app  # noqa: E402
from local_bigquery.catalog import tables  # noqa: E402
from local_bigquery.engine import database  # noqa: E402
from local_bigquery.errors import BigQueryError  # noqa: E402
from local_bigquery.jobs import load, runner  # noqa: E402

PREFIX = "Error while reading data, error message: "


class BadRows(BigQueryError):
    """A load that failed on rows, with one entry for each of the first of them."""

    rows = ()


def decompressed(path):
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return
    with gzip.open(path, "rb") as source, open(path + ".plain", "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    os.replace(path + ".plain", path)


def complaint(line, config, known, required):
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"Parser terminated before end of string ({error})"
    if not isinstance(row, dict):
        return "Value encountered without start of object."
    for name in row:
        if name.lower() not in known and not config.ignoreUnknownValues:
            return f"No such field: {name}."
    for name in required:
        if row.get(name) is None:
            return f"Missing required field: {name}."
    return None


def checked(path, config, fields):
    known = {field.name.lower() for field in fields}
    required = [field.name for field in fields if field.mode == "REQUIRED"]
    position = count = 0
    bad = []
    with open(path, "rb") as source, open(path + ".good", "wb") as good:
        for line in source:
            start, position = position, position + len(line)
            if not line.strip():
                continue
            count += 1
            if why := complaint(line, config, known, required):
                message = f"{PREFIX}JSON parsing error in row starting at position {start}: {why}"
                bad.append({"reason": "invalid", "message": message})
            else:
                good.write(line)
    allowed = config.maxBadRecords or 0
    if len(bad) > allowed:
        error = BadRows(
            "invalid",
            f"{PREFIX}JSON table encountered too many errors, giving up. Rows: {count}; errors: {len(bad)}. "
            "Please look into the errors[] collection for more details.",
        )
        error.rows = bad[:100]
        raise error
    os.replace(path + ".good", path)
    return config.replace(maxBadRecords=allowed - len(bad)) if bad else config


def strict_load(cursor, config, upload):
    if doom := dooms.pop(upload, None):
        raise BigQueryError(doom["reason"], doom["message"])
    if upload:
        decompressed(upload)
        if config.sourceFormat == "NEWLINE_DELIMITED_JSON" and not config.autodetect:
            fields = (config.schema_ and config.schema_.fields) or None
            if fields is None:
                fields = tables.get(*tables.reference(config.destinationTable)).schema_.fields
                config = config.replace(schema_={"fields": [field.dump() for field in fields]})
            config = checked(upload, config, fields)
    return load.run(cursor, config, upload)


plain_done = runner._done


def done(job, statistics, error=None):
    job = plain_done(job, statistics, error)
    if isinstance(error, BadRows):
        job = job.replace(status=job.status.replace(errors=[error.proto(), *error.rows]))
    return job


plain_submit = runner.submit


def submit(project_id, job_id, configuration, upload=None):
    path = f"POST /upload/bigquery/v2/projects/{project_id}/jobs?"
    if upload and (fault := take(path, "job")):
        dooms[upload] = fault["job"]
    return plain_submit(project_id, job_id, configuration, upload)


runner.HANDLERS["load"] = strict_load
runner._done = done
runner.submit = submit

faults, seen, dooms = [], [], {}


def take(line, *kinds):
    """The armed fault for this request, which is thereby used once."""
    for fault in faults:
        wanted = "job" in fault if kinds else "job" not in fault
        if not wanted or fault.get("times", 1) < 1 or not re.search(fault["match"], line):
            continue
        if fault.get("skip", 0) > 0:
            fault["skip"] -= 1
            return None
        fault["times"] = fault.get("times", 1) - 1
        return fault
    return None


def refusal(fault):
    status = fault["status"]
    entry = {"reason": fault.get("reason", "backendError"), "domain": "global", "message": "injected"}
    return json.dumps({"error": {"code": status, "message": "injected", "status": "INJECTED", "errors": [entry]}})


async def answer(send, status, body, headers=None):
    fields = {"content-type": "application/json", **(headers or {})}
    encoded = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body.encode()})


class Faults:
    """Stands before the emulator, keeps a list of the requests, and spoils those that the tests ask for."""

    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.inner(scope, receive, send)
        if scope["path"] == "/_fault":
            return await self.control(scope, receive, send)
        line = f"{scope['method']} {scope['path']}?{scope['query_string'].decode()}"
        record = {"line": line, "status": None, "bytes": 0}
        seen.append(record)

        async def counted():
            message = await receive()
            record["bytes"] += len(message.get("body", b""))
            return message

        async def noted(message):
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
            await send(message)

        fault = take(line)
        if fault is None:
            return await self.inner(scope, counted, noted)
        await asyncio.sleep(fault.get("delay_ms", 0) / 1000)
        if fault.get("when") == "after":

            async def swallowed(message):
                pass

            await self.inner(scope, counted, swallowed)
        elif "status" in fault or fault.get("drop"):
            while (await counted()).get("more_body"):
                pass
        if fault.get("drop"):
            record["status"] = "dropped"
            # uvicorn's request cycle: reset the connection, and let it believe that everything has been said.
            cycle = receive.__self__
            cycle.transport.abort()
            cycle.disconnected = cycle.response_complete = True
        elif "status" in fault:
            await answer(noted, fault["status"], fault.get("body") or refusal(fault), fault.get("headers"))
        else:
            await self.inner(scope, counted, noted)

    async def control(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body")
        if scope["method"] == "POST":
            faults.append(json.loads(body))
        await answer(send, 200, json.dumps(seen))


def end_with_our_starter():
    sys.stdin.buffer.read()
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
    os._exit(0)


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(json.dumps({"port": sockets[0].getsockname()[1]}), flush=True)


threading.Thread(target=end_with_our_starter, daemon=True).start()
database.connection()  # Fails here, rather than in the first request, when an extension is missing.
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
# Tests pause for longer than the usual five seconds between requests, and a closed connection would be one fault too many.
configuration = uvicorn.Config(Faults(app), log_level="warning", timeout_keep_alive=600)
Server(configuration).run(sockets=[listener])
