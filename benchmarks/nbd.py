"""NBD over HTTP: our server beside nbdkit's curl plugin and qemu-storage-daemon, with and without 10 ms per HTTP request.

Needs nginx with its perl module, nbdkit, qemu-storage-daemon with its curl driver, wrk and fio. Every server is started
afresh for every job, so that reads are cold; jobs and servers are interleaved, the medians of the rounds are printed:
compare numbers of one run only. ``http`` is no NBD server but wrk asking for the same random ranges on as many
connections as the job has reads in flight: what one HTTP request for each read can reach at all. A server that has not
finished a job when its time is over three times is killed, and the job counts as hung.

    python benchmarks/nbd.py [--rounds 3] [--seconds 2] [--servers ours,nbdkit] [--jobs seq1m,rnd4k-q16] [--delays 0,10]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GIB = 1 << 30
TICKS = os.sysconf("SC_CLK_TCK")

# name: fio's arguments, and what is compared.
JOBS: dict[str, tuple[list[str], str]] = {
    "seq128k": (["--rw=read", "--bs=128k", "--iodepth=1"], "MB/s"),
    "seq1m": (["--rw=read", "--bs=1m", "--iodepth=1"], "MB/s"),
    "rnd4k-q1": (["--rw=randread", "--bs=4k", "--iodepth=1"], "IOPS"),
    "rnd4k-q16": (["--rw=randread", "--bs=4k", "--iodepth=16"], "IOPS"),
    "rnd4k-q64": (["--rw=randread", "--bs=4k", "--iodepth=64"], "IOPS"),
    "warm4k-q16": (["--rw=randread", "--bs=4k", "--iodepth=16", "--size=32m"], "IOPS"),
}
# The job's number, and CPU seconds per GiB.
Run = tuple[float, float | None]
SERVERS = ("ours", "nbdkit", "nbdkit-cache", "nbdkit-readahead", "qemu-256k", "qemu-4m", "http")
QEMU_READAHEAD = {"qemu-256k": 256 << 10, "qemu-4m": 4 << 20}  # bytes
FILTERS = {
    "nbdkit": [],
    "nbdkit-cache": ["--filter=cache"],
    "nbdkit-readahead": ["--filter=cache", "--filter=readahead", "--filter=retry"],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit("a server did not start")
        time.sleep(0.02)


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[dict[int, str]]:
    """URLs of the file by delay in milliseconds."""
    ports = {0: free_port(), 10: free_port()}
    config = folder / "nginx.conf"
    config.write_text(
        f"""
load_module /usr/lib/nginx/modules/ngx_http_perl_module.so;
daemon off; pid {folder}/pid; error_log {folder}/error.log; user root; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000000; root {folder}/www;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{ports[0]}; }}
  server {{ listen 127.0.0.1:{ports[10]};
    location / {{ perl 'sub {{ my $r = shift;
      $r->sleep(10, sub {{ my $r = shift; $r->internal_redirect("\\@file"); return OK; }}); return OK; }}'; }}
    location @file {{ }} }}
}}
"""
    )
    process = subprocess.Popen([shutil.which("nginx") or "/usr/sbin/nginx", "-c", config, "-p", folder])
    try:
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", ports[10])) == 0)
        yield {delay: f"http://127.0.0.1:{port}/disk" for delay, port in ports.items()}
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def served(server: str, url: str, path: Path) -> Iterator[int]:
    """A server's process id while it listens on ``path``."""
    if server == "ours":
        argv = [sys.executable, "-m", "nbd_client.cli", "serve", url, "--unix", str(path)]
    elif server in QEMU_READAHEAD:
        disk = f"driver=http,node-name=disk,url={url},readahead={QEMU_READAHEAD[server]},read-only=on"
        argv = ["qemu-storage-daemon", "--blockdev", disk]
        argv += ["--nbd-server", f"addr.type=unix,addr.path={path}"]
        argv += ["--export", "type=nbd,id=export,node-name=disk,name="]
    else:
        argv = ["nbdkit", "-f", "-r", "-U", str(path), *FILTERS[server], "curl", f"url={url}"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        wait_for(path.exists)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        path.unlink(missing_ok=True)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def fio(path: Path, arguments: list[str], limit: list[str], timeout: float = 120) -> dict:
    done = subprocess.run(
        [
            *("fio", "--name=job", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}"),
            *("--output-format=json", "--norandommap", "--randrepeat=0", *arguments, *limit),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=timeout,
    )
    return json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]


def wrk(url: str, depth: int, folder: Path, seconds: float, size: int) -> float:
    """Random 4 KiB ranges a second over bare HTTP on ``depth`` connections."""
    script = folder / "ranges.lua"
    script.write_text(
        f"""
math.randomseed(os.time())
request = function()
  local start = math.random(0, {size // 4096 - 1}) * 4096
  return wrk.format("GET", nil, {{Range = "bytes=" .. start .. "-" .. start + 4095}})
end
"""
    )
    done = subprocess.run(
        ["wrk", "-t1", f"-c{depth}", f"-d{max(1, round(seconds))}s", "-s", script, url],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(next(line.split()[1] for line in done.stdout.splitlines() if "Requests/sec" in line))


def measure(server: str, url: str, job: str, folder: Path, seconds: float, size: int) -> Run | None:
    """The job's number and the server's CPU seconds per GiB (``None`` where there is no server); ``None`` if it hung."""
    path = folder / "nbd.sock"
    arguments, unit = JOBS[job]
    if server == "http":
        return wrk(url, int(job.rpartition("-q")[2]), folder, seconds, size), None
    timeout = 3 * seconds + 5
    with served(server, url, path) as pid:
        try:
            if job.startswith("warm"):
                fio(path, ["--rw=read", "--bs=256k", "--iodepth=1", "--size=32m"], [])
            before = cpu_seconds(pid)
            read = fio(path, arguments, ["--time_based", f"--runtime={seconds}"], timeout)
            cpu = cpu_seconds(pid) - before
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
            # The others always answer: of them this is a defect of the measurement.
            if server not in QEMU_READAHEAD:
                raise
            os.kill(pid, signal.SIGKILL)
            return None
    number = read["bw_bytes"] / 1e6 if unit == "MB/s" else read["iops"]
    return number, cpu / (read["io_bytes"] / GIB)


def is_measured(server: str, job: str) -> bool:
    """Whether a job makes sense: bare HTTP keeps nothing warm and does not read ahead."""
    return server != "http" or job.startswith("rnd")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--delays", default="0,10")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[tuple[int, str, str], list[Run | None]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "www").mkdir()
        with (folder / "www" / "disk").open("wb") as disk:
            for _ in range(options.size_mib):
                disk.write(os.urandom(1 << 20))
        with nginx(folder) as urls:
            for _ in range(options.rounds):
                for delay in map(int, options.delays.split(",")):
                    for job in options.jobs.split(","):
                        for server in options.servers.split(","):
                            if is_measured(server, job):
                                size = options.size_mib << 20
                                numbers = measure(server, urls[delay], job, folder, options.seconds, size)
                                results[delay, job, server].append(numbers)
    if options.json:
        print(json.dumps([_row(*key, runs) for key, runs in results.items()]))
        return
    print(f"{'delay':>5} {'job':<11} {'server':<17} {'median':>10} {'unit':<5} {'CPU s/GiB':>9}")
    for (delay, job, server), runs in results.items():
        row = _row(delay, job, server, runs)
        number = "-" if row["number"] is None else f"{row['number']:.0f}"
        cpu = "-" if row["cpu_s_gib"] is None else f"{row['cpu_s_gib']:.2f}"
        hung = f"  hung in {row['hung']} of {len(runs)}" if row["hung"] else ""
        print(f"{delay:>5} {job:<11} {server:<17} {number:>10} {JOBS[job][1]:<5} {cpu:>9}{hung}")


def _row(delay: int, job: str, server: str, runs: list[Run | None]) -> dict[str, Any]:
    """Medians of the runs that ended, ``None`` where there are none, and how many hung."""
    ended = [run for run in runs if run is not None]
    costs = [cpu for _, cpu in ended if cpu is not None]
    return {
        "delay_ms": delay,
        "job": job,
        "server": server,
        "number": statistics.median(number for number, _ in ended) if ended else None,
        "cpu_s_gib": statistics.median(costs) if costs else None,
        "hung": len(runs) - len(ended),
    }


if __name__ == "__main__":
    main()
