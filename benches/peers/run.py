#!/usr/bin/env python3
"""The same work in Espalier and in its peers, one command: `python3 benches/peers/run.py`.

Builds Espalier's side, installs the Python peers into a throw-away virtual environment, builds the Rust
peers, starts every peer as a process of its own, and asks each in turn for a few repetitions of one piece
of work, round after round, so that a disturbance of the machine meets all of them. Prints a table of
medians, and writes it with every figure as JSON. A peer that cannot be had is named as missing, with the
reason. docs/speed.md explains the rows.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Name, repetitions a round, what a row is.
WORK = [
    ("W1", 40, "W1 MLP 784-512-512-10, batch 128, Adam"),
    ("W2", 60, "W2 the same, batch 32"),
    ("W3", 15, "W3 CNN 1x28x28, batch 64, Adam"),
    ("W4", 12, "W4 decoder transformer, 2 layers, d 128, Adam"),
    ("matmul-512", 40, "W5 matmul 512"),
    ("matmul-1024", 15, "W5 matmul 1024"),
    ("matmul-2048", 5, "W5 matmul 2048"),
    ("tanh", 60, "W6 a*b+c then tanh, 1M floats"),
    ("softmax", 60, "W6 softmax, 4096x512"),
    ("layer-norm", 60, "W6 layer-norm, 4096x512"),
    ("sum-last", 200, "W6 sum over the last axis, 4096x512"),
    ("sum-first", 200, "W6 sum over the first axis, 4096x512"),
    ("adam", 15, "W7 Adam update, 10M parameters"),
    ("tiny", 1000, "tiny network 8-16-2, batch 8, SGD"),
]

# torch.compile is asked for whole training steps only: compiling a program takes it half a minute.
COMPILED = {"W1", "W2", "W3", "W4"}

# What each row is to be held against: the peers, and the share of their best time that is the goal.
EVERY = ["torch", "torch-fused", "torch-compile", "jax", "candle", "burn", "dfdx"]
GOALS = {
    "W1": (EVERY, 0.95), "W2": (EVERY, 1.0), "W3": (EVERY, 0.8), "W4": (EVERY, 0.8),
    "matmul-512": (["torch"], 1.0), "matmul-1024": (["torch"], 1.0), "matmul-2048": (["torch"], 1.0),
    "tanh": (["torch", "jax"], 1.0), "softmax": (["torch", "jax"], 1.0),
    "layer-norm": (["torch", "jax"], 1.0), "sum-last": (["torch", "jax"], 1.0),
    "sum-first": (["torch", "jax"], 1.0), "adam": (["torch-fused"], 1.05), "tiny": (["torch"], 1 / 15),
}

# Millions of floating-point operations that the matrix products of a row need, and millions of bytes that an
# operation must read and write at least.
MFLOP = {
    "W1": 411.3, "W2": 102.8, "W3": 985.3, "W4": 2717.9,
    "matmul-512": 268.4, "matmul-1024": 2147.5, "matmul-2048": 17179.9,
}
MBYTE = {
    "tanh": 16.8, "softmax": 16.8, "layer-norm": 16.8, "sum-last": 8.4, "sum-first": 8.4, "adam": 280.0,
}


def say(text):
    print(text, file=sys.stderr, flush=True)


class Peer:
    """A process that answers `WORK COUNT` lines."""

    def __init__(self, name, command, environment=None):
        self.name, self.missing, self.peak = name, {}, {}
        environment = dict(os.environ, OMP_NUM_THREADS="2", MKL_NUM_THREADS="2", RAYON_NUM_THREADS="2",
                           **(environment or {}))
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            cwd=HERE, env=environment,
        )
        self.version = self._answer().get("version", "?")

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            tail = self.log.read().decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"{self.name} ended: {tail[0][:200]}")
        return json.loads(line)

    def measure(self, work, count):
        """Seconds of each repetition, or None where this peer cannot do the work."""
        if work in self.missing:
            return None
        try:
            self.process.stdin.write(f"{work} {count}\n")
            self.process.stdin.flush()
            answer = self._answer()
        except (RuntimeError, OSError, ValueError) as error:
            answer = {"missing": str(error)}
        if "missing" in answer:
            self.missing[work] = answer["missing"]
            say(f"  {self.name} {work}: {answer['missing'].splitlines()[0][:160]}")
            return None
        return answer["times"]

    def peak_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def stop(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def run(command, **options):
    return subprocess.run(command, check=True, text=True, capture_output=True, **options)


def python_of(folder):
    """The interpreter of a virtual environment with requirements.txt in it; made where there is none."""
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"installing requirements.txt into {folder}")
        run([sys.executable, "-m", "venv", str(folder)])
        run([str(python), "-m", "pip", "install", "-q", "-r", str(HERE / "requirements.txt")])
    return python


def commands(venv, wanted, missing):
    """The command of each peer that can be had; the others go into `missing` with the reason."""
    found = {}
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    say("building Espalier's side")
    run(["cargo", "build", "--release", "-q", "-p", "espalier-benches", "--bin", "espalier-peer"], cwd=ROOT)
    binary = str(target / "release" / "espalier-peer")
    for name, kind in [("component", "component"), ("captured", "captured"), ("native", "native")]:
        found[name] = ([binary, kind], None)
    python_peers = {
        "torch": "torch_peer.py eager", "torch-fused": "torch_peer.py fused",
        "torch-compile": "torch_peer.py compile", "jax": "jax_peer.py",
    }
    if wanted & set(python_peers):
        try:
            python = str(python_of(venv))
            for name, script in python_peers.items():
                found[name] = ([python, *script.split()], None)
        except (subprocess.CalledProcessError, OSError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1][:200]
            missing.update({name: f"not installed: {reason}" for name in python_peers})
    if shutil.which("c++") is None and shutil.which("g++") is None:
        found.pop("torch-compile", None)
        missing["torch-compile"] = "needs a C++ compiler, and there is none"
    for name in ["candle", "burn", "dfdx"]:
        if name not in wanted:
            continue
        folder = HERE / "rust" / name
        try:
            if not folder.exists():
                raise FileNotFoundError("no program of it in benches/peers/rust")
            say(f"building {name}")
            run(["cargo", "build", "--release", "-q", "--locked"], cwd=folder)
            found[name] = ([str(folder / "target" / "release" / f"{name}-peer")], None)
        except (subprocess.CalledProcessError, OSError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1][:200]
            missing[name] = f"not built: {reason}"
    return {name: command for name, command in found.items() if name in wanted}, binary


def machine(binary):
    about = json.loads(run([binary, "machine"]).stdout)
    model = platform.processor()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
        if line.startswith("flags"):
            about["vectors"] = "AVX-512" if "avx512f" in line else "AVX2" if "avx2" in line else "narrower"
    about.update(cpu=model, cores=os.cpu_count(), threads=2, load=os.getloadavg()[0],
                 date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    about["commit"] = run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT).stdout.strip()
    return about


def table(results, names):
    def cell(value):
        return "" if value is None else f"{value * 1e6:,.0f}" if value >= 20e-6 else f"{value * 1e6:.1f}"

    lines = ["| work | " + " | ".join(names) + " | component / best | goal | share of the limit |",
             "| --- |" + " ---: |" * (len(names) + 3)]
    for row in results:
        best, goal = row.get("ratio"), row["goal"]
        lines.append(
            f"| {row['title']} | " + " | ".join(cell(row["shown"].get(n)) for n in names)
            + f" | {'' if best is None else f'{best:.2f}'} | {goal:.2f} | {row.get('share', '')} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often every peer is asked for each work")
    parser.add_argument("--work", default="", help="comma-separated; all if left out")
    parser.add_argument("--peers", default="component,native," + ",".join(EVERY))
    parser.add_argument("--venv", type=pathlib.Path, help="keep the virtual environment here and use it again")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("peers.json"))
    parser.add_argument("--least", action="store_true",
                        help="the least time instead of the median: for a machine that is not at rest")
    parser.add_argument("--memory", action="store_true", help="also the peak memory of W1-W4, one process each")
    options = parser.parse_args()
    wanted = set(options.peers.split(","))
    chosen = [w for w in WORK if not options.work or w[0] in options.work.split(",")]
    throw_away = None if options.venv else tempfile.TemporaryDirectory()
    venv = options.venv.resolve() if options.venv else pathlib.Path(throw_away.name) / "venv"
    missing = {}
    found, binary = commands(venv, wanted, missing)

    about = machine(binary)
    peers = []
    for name, (command, environment) in found.items():
        try:
            peers.append(Peer(name, command, environment))
        except (RuntimeError, OSError) as error:
            missing[name] = str(error)
    names = [peer.name for peer in peers]
    for name, reason in missing.items():
        say(f"missing: {name}: {reason}")

    results = []
    for work, count, title in chosen:
        say(title)
        times, least = {name: [] for name in names}, {}
        for round_ in range(options.rounds):
            # Another one goes first each round.
            for peer in peers[round_ % len(peers):] + peers[: round_ % len(peers)]:
                if peer.name == "torch-compile" and work not in COMPILED:
                    continue
                answer = peer.measure(work, count)
                if answer:
                    times[peer.name].append(statistics.median(answer))
                    least[peer.name] = min(least.get(peer.name, answer[0]), *answer)
        medians = {name: statistics.median(t) for name, t in times.items() if t}
        shown = least if options.least else medians
        against, goal = GOALS[work]
        others = [shown[name] for name in against if name in shown]
        row = {"work": work, "title": title, "shown": shown, "medians": medians, "least": least,
               "rounds": times, "goal": goal}
        own = shown.get("component")
        if own and others:
            row["ratio"] = own / min(others)
        if own and shown.get("native"):
            row["sandbox"] = own / shown["native"] - 1
        if own and work in MFLOP:
            rate = MFLOP[work] / 1e3 / own
            row["share"] = f"{rate:.0f} GFLOP/s, {rate / about['gflops']:.0%}"
        elif own and work in MBYTE:
            row["share"] = f"{MBYTE[work] / 1e3 / own:.0f} GB/s"
        results.append(row)
        say("  " + ", ".join(f"{n} {t * 1e6:,.1f}" for n, t in shown.items()) + " us")
    unable = {peer.name: peer.missing for peer in peers if peer.missing}
    versions = {peer.name: peer.version for peer in peers}
    for peer in peers:
        peer.stop()

    memory = {}
    if options.memory:
        for name, (command, environment) in found.items():
            for work in ["W1", "W2", "W3", "W4"]:
                peer = Peer(name, command, environment)
                if peer.measure(work, 30):
                    memory.setdefault(work, {})[name] = round(peer.peak_mib(), 1)
                peer.stop()

    print(f"{about['cpu']}, {about['cores']} cores, {about['vectors']}, {about['threads']} threads; "
          f"{about['gflops']:.0f} GFLOP/s f32 by a fused-multiply-add loop; copies read and write "
          f"{about['copy_4_mib_gb_s']:.0f} GB/s at 4 MiB, {about['copy_256_mib_gb_s']:.0f} GB/s at 256 MiB; "
          f"commit {about['commit']}, {about['date']}, load {about['load']:.1f} before. Microseconds, "
          f"{'least' if options.least else 'medians'} of {options.rounds} rounds.\n")
    print(table(results, names))
    print("\nComponent against native: " + ", ".join(
        f"{row['work']} {row['sandbox']:+.1%}" for row in results if "sandbox" in row))
    for work, peaks in memory.items():
        print(f"Peak memory of {work}, MiB: " + ", ".join(f"{n} {m:.0f}" for n, m in peaks.items()))
    for name, reason in missing.items():
        print(f"Missing: {name}: {reason}")
    for name, works in unable.items():
        for work, reason in works.items():
            print(f"Missing: {name} {work}: {reason.splitlines()[0][:200]}")
    options.json.write_text(json.dumps(
        {"machine": about, "versions": versions, "rounds": options.rounds, "results": results,
         "memory": memory, "missing": missing, "unable": unable}, indent=1) + "\n")
    say(f"wrote {options.json}")


if __name__ == "__main__":
    main()
