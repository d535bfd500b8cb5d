"""Runs the nightly upload and its peers side by side, in turns, and prints medians and ratios.

Every run, of whichever contestant, starts from the same data: a private redis-server that loads the same snapshot. What a
run sent is counted by the sink after the clock has stopped, and a run that sent too few or too many rows is an error, not
a figure. Times are of the whole process, from exec to exit.
"""

import argparse
import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import redis
import records

HERE = pathlib.Path(__file__).parent
OURS = "lamplighter"
PEERS = {"rows": "(a) insert_rows_json", "json": "(b) load_table_from_json", "file": "(c) load_table_from_file"}
FLOOR = {"rows": 28, "json": 7, "file": 2.2}
TABLES = ("flit_bnpl_raw.raw_bnpl_txs_json", "flit_ml_raw.raw_bnpl_prediction_logs")

JOBS_TOML = """
[jobs.nightly-upload]
kind = "upload"
schedule = "0 2 * * *"
datasets = ["transactions", "predictions"]

[datasets.transactions]
database = 0
queue = "upload_queue"
keys = "tx:{id}"
table = "flit_bnpl_raw.raw_bnpl_txs_json"
layout = "json"

[datasets.predictions]
database = 1
queue = "upload_queue"
keys = "pred:{id}"
table = "flit_ml_raw.raw_bnpl_prediction_logs"
layout = "columns"
timestamp_field = "prediction_timestamp"
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def process(*command, **options):
    """A child that ends with the block."""
    child = subprocess.Popen(command, **options)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def redis_server(folder):
    """A redis-server on a free port that loads the snapshot in `folder`, if there is one, and never writes there by itself."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with process(*command, stdout=subprocess.DEVNULL) as server:
        client = redis.Redis(port=port)
        deadline = time.monotonic() + 300
        while True:
            try:
                client.ping()
                break
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError) as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"redis-server on port {port} did not come up: {error}") from error
                select.select([], [], [], 0.02)
        yield port, server.pid


class Sink:
    """The process that answers like BigQuery."""

    def __init__(self, stack, binary):
        child = stack.enter_context(process(binary, stdout=subprocess.PIPE, text=True))
        self.pid = child.pid
        self.url = f"http://127.0.0.1:{int(child.stdout.readline())}"

    def settle(self, forget):
        request = urllib.request.Request(f"{self.url}/_settle{'?forget' if forget else ''}", method="POST")
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)


def cpu_seconds(pid):
    user, system = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid):
    """The most memory that the process has had resident so far, in MB; None when it is gone."""
    # Not rusage: that starts with what the process that forked the child had.
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def watch(child, port, ping):
    """Waits for the child; returns seconds, exit code, CPU seconds, peak memory, and the times of PINGs in ms."""
    start = time.perf_counter()
    handle = os.pidfd_open(child.pid)
    pings, peak, rounds = [], 0.0, 0
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as other:
        other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not select.select([handle], [], [], 0.002 if ping else 0.01)[0]:
            if ping:
                sent = time.perf_counter()
                other.sendall(b"PING\r\n")
                other.recv(64)
                pings.append((time.perf_counter() - sent) * 1000)
            if rounds % 5 == 0:
                peak = max(peak, peak_mb(child.pid) or 0)
            rounds += 1
    seconds = time.perf_counter() - start
    os.close(handle)
    before = os.times()
    code = child.wait()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, code, cpu, peak, pings


def run(name, sink, snapshot, folder, count, forget=False):
    """One run of one contestant."""
    with redis_server(snapshot) as (port, redis_pid):
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        if name == OURS:
            (folder / "jobs.toml").write_text(JOBS_TOML)
            data = folder / "data"
            shutil.rmtree(data, ignore_errors=True)
            environment |= {
                "BIGQUERY_EMULATOR_HOST": sink.url,
                "BIGQUERY_PROJECT": "bench",
                "REDIS_URL": f"redis://127.0.0.1:{port}",
                "LAMPLIGHTER_DATA": str(data),
            }
            command = [sink.contestant, "run", "nightly-upload", "--config", str(folder / "jobs.toml")]
        else:
            command = [sys.executable, str(HERE / "peers.py"), name, str(port), sink.url]
        sink_before, redis_before = cpu_seconds(sink.pid), cpu_seconds(redis_pid)
        with open(folder / "output.txt", "w+") as output:
            child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            try:
                seconds, code, cpu, peak, pings = watch(child, port, ping=name == OURS)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        result = {
            "seconds": seconds,
            "rate": count / seconds,
            "cpu": cpu,
            "peak_mb": peak,
            "sink_cpu": cpu_seconds(sink.pid) - sink_before,
            "redis_cpu": cpu_seconds(redis_pid) - redis_before,
            "pings": pings,
        }
        settled = sink.settle(forget)
        result["sent_mb"], result["loads"] = settled["bytes"] / 1e6, settled["loads"]
        expected = {TABLES[0]: count - count // 2, TABLES[1]: count // 2}
        complaint = None
        if code != 0:
            complaint = f"exit code {code}"
        elif settled["rows"] != expected:
            complaint = f"the sink received {settled['rows']}, expected {expected}"
        elif settled["wrong_answers"]:
            complaint = f"loads differed from the rehearsal: {settled['wrong_answers']}"
        elif name == OURS and (left := left_over(port)):
            complaint = f"left in Redis: {left}"
        if complaint:
            sys.stderr.write((folder / "output.txt").read_text()[-4000:])
            raise SystemExit(f"{name}: {complaint}")
        return result


def left_over(port):
    """What an upload of everything should not have left: records, queue entries, claimed batches."""
    left = []
    for database in (0, 1):
        with redis.Redis(port=port, db=database) as client:
            for key in client.scan_iter(count=10_000):
                # A finished batch's lease says for a day that it is finished.
                batch = b":inflight" in key and not key.endswith(b":lease")
                if key.startswith((b"tx:", b"pred:")) or key == b"upload_queue" or batch:
                    left.append(f"db{database} {key.decode(errors='replace')}")
    return left[:5]


def fill(folder, count):
    """Makes a snapshot with so many records in `folder`; returns their mean size in bytes."""
    folder.mkdir()
    with redis_server(folder) as (port, _):
        size = records.fill(port, count)
        with redis.Redis(port=port, socket_timeout=600) as client:
            client.config_set("rdbcompression", "no")
            client.save()
    return size


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def report(results, count, size):
    print(f"\n{count:,} records of {size:.0f} bytes on average, {os.cpu_count()} cores; medians, whole process\n")
    print(f"{'':28}{'records/s':>11}{'seconds':>9}{'CPU s':>7}{'peak MB':>9}{'sent MB':>9}{'sink CPU':>10}{'Redis CPU':>11}")
    median = {}
    for name, runs in results.items():
        if not runs:
            continue
        median[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "pings"}
        it = median[name]
        print(
            f"{PEERS.get(name, name):28}{it['rate']:>11,.0f}{it['seconds']:>9.2f}{it['cpu']:>7.2f}{it['peak_mb']:>9.0f}"
            f"{it['sent_mb']:>9.1f}{it['sink_cpu']:>10.2f}{it['redis_cpu']:>11.2f}"
        )
    if OURS not in median:
        return
    ours = median[OURS]
    pings = [ping for run in results[OURS] for ping in run["pings"]]
    goals = [("records/s", f"{ours['rate']:,.0f}", "at least 150,000", ours["rate"] >= 150_000)]
    for name in PEERS:
        if name in median:
            ratio = ours["rate"] / median[name]["rate"]
            goals.append((f"x {PEERS[name]}", f"{ratio:.1f}", f"at least {FLOOR[name]}", ratio >= FLOOR[name]))
    goals.append(("peak resident MB", f"{ours['peak_mb']:.1f}", "at most 48", ours["peak_mb"] <= 48))
    p99 = percentile(pings, 0.99)
    goals.append(("Redis PING p99 ms", f"{p99:.2f}", "under 5", p99 < 5))
    print()
    for what, value, goal, met in goals:
        print(f"{what:32}{value:>12}   {goal:18} {'met' if met else 'MISSED'}")
    print(f"\nRedis PING during our runs: {len(pings)} times, p50 {percentile(pings, 0.5):.2f} ms, longest {max(pings):.2f} ms")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-upload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contestant (default 3)")
    parser.add_argument("--records", type=int, default=200_000, help="default 200,000; 10,000,000 need 20 GB of memory")
    parser.add_argument("--only", default=",".join([OURS, *PEERS]), help="comma-separated: lamplighter,rows,json,file")
    parser.add_argument("--json", action="store_true", help="also print every run as a line of JSON")
    parser.add_argument("--binary", default="target/release/lamplighter", help=argparse.SUPPRESS)
    parser.add_argument("--sink", default="target/release/examples/bigquery_sink", help=argparse.SUPPRESS)
    options = parser.parse_args()
    contestants = options.only.split(",")
    if unknown := set(contestants) - {OURS, *PEERS}:
        parser.error(f"no such contestant: {', '.join(sorted(unknown))}")
    if options.rounds < 1 or options.records < 2:
        parser.error("at least one round and two records")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    with contextlib.ExitStack() as stack:
        work = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamplighter-bench-")))
        snapshot, folder = work / "snapshot", work / "run"
        folder.mkdir()
        print(f"filling Redis with {options.records:,} records", flush=True)
        size = fill(snapshot, options.records)
        sinks = {name: Sink(stack, options.sink) for name in contestants}
        for sink in sinks.values():
            sink.contestant = options.binary
        # So that the tables exist, and that the sink can answer at once; see its own words. Beyond this size it counts as it
        # is asked, and keeps nothing.
        if OURS in contestants:
            print("rehearsal", flush=True)
            if options.records <= 1_000_000:
                run(OURS, sinks[OURS], snapshot, folder, options.records)
            else:
                fill(work / "few", 1_000)
                run(OURS, sinks[OURS], work / "few", folder, 1_000, forget=True)
        results = {name: [] for name in contestants}
        for number in range(options.rounds):
            for name in contestants:
                result = run(name, sinks[name], snapshot, folder, options.records)
                results[name].append(result)
                print(f"round {number + 1}: {name:12} {result['rate']:>9,.0f} records/s {result['peak_mb']:>7.1f} MB", flush=True)
                if options.json:
                    print(json.dumps({"contestant": name} | {k: v for k, v in result.items() if k != "pings"}), flush=True)
        report(results, options.records, size)


if __name__ == "__main__":
    main()
