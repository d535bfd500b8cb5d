"""What Lamplighter is compared with: three ways to do the upload in Python, from the usual one to the best known.

    peers.py NAME REDIS_PORT SINK_URL

  rows     one GET for each key, json.loads, insert_rows_json by 500: how the uploader that Lamplighter replaces did it
  json     MGET, json.loads, load_table_from_json
  file     pipelined MGET, orjson as the check, gzip level 1 into a temporary file, load_table_from_file

All three write the same rows as Lamplighter: three columns for transactions, a column for each field of predictions. None
claims entries, deletes records or could be killed without harm; that work is Lamplighter's alone.
"""

import datetime
import gzip
import json
import sys
import tempfile

import redis
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

QUEUE = "upload_queue"
DATASETS = ((0, "flit_bnpl_raw.raw_bnpl_txs_json"), (1, "flit_ml_raw.raw_bnpl_prediction_logs"))


def pieces(items, size):
    for start in range(0, len(items), size):
        yield items[start : start + size]


def row(database, record, text, now):
    if database == 0:
        return {"_timestamp": record["_timestamp"], "json_body": text, "_ingestion_timestamp": now}
    return record | {"_ingestion_timestamp": now}


def by_rows(cache, warehouse, database, table, now):
    rows = []

    def send():
        errors = warehouse.insert_rows_json(table, rows)
        assert not errors, errors
        rows.clear()

    for key in cache.lrange(QUEUE, 0, -1):
        value = cache.get(key)
        if value is not None:
            rows.append(row(database, json.loads(value), value.decode(), now))
        if len(rows) == 500:
            send()
    if rows:
        send()


def by_json(cache, warehouse, database, table, now):
    rows = []
    for keys in pieces(cache.lrange(QUEUE, 0, -1), 1_000):
        for value in cache.mget(keys):
            if value is not None:
                record = json.loads(value)
                rows.append(row(database, record, record, now))
    config = bigquery.LoadJobConfig(autodetect=True)
    warehouse.load_table_from_json(rows, f"{warehouse.project}.{table}", job_config=config).result()


def by_file(cache, warehouse, database, table, now):
    import orjson

    end = b',"_ingestion_timestamp":"%s"}\n' % now.encode()
    with tempfile.TemporaryFile() as file:
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as body:
            for keys in pieces(cache.lrange(QUEUE, 0, -1), 4_000):
                pipe = cache.pipeline(transaction=False)
                for part in pieces(keys, 1_000):
                    pipe.mget(part)
                lines = []
                for value in (value for values in pipe.execute() for value in values):
                    if value is None:
                        continue
                    record = orjson.loads(value)
                    if database == 0:
                        at = record["_timestamp"].encode()
                        lines.append(b'{"_timestamp":"%s","json_body":%s%s' % (at, value, end))
                    else:
                        lines.append(value[:-1] + end)
                body.write(b"".join(lines))
        file.seek(0)
        config = bigquery.LoadJobConfig(
            source_format=bigquery.SourceFormat.NEWLINE_DELIMITED_JSON, autodetect=True
        )
        warehouse.load_table_from_file(file, f"{warehouse.project}.{table}", job_config=config).result()


PEERS = {"rows": by_rows, "json": by_json, "file": by_file}


def main():
    name, port, sink = sys.argv[1:]
    warehouse = bigquery.Client(
        project="bench", credentials=AnonymousCredentials(), client_options={"api_endpoint": sink}
    )
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    for database, table in DATASETS:
        with redis.Redis(port=int(port), db=database) as cache:
            PEERS[name](cache, warehouse, database, table, now)


if __name__ == "__main__":
    main()
