"""How long `ftrain --help` takes beside an empty Typer app's: run in turn, medians, and their ratio.

    python benchmarks/startup.py [RUNS]

Needs ftrain installed in the interpreter that runs it. To reach: a ratio of at most 1.5.
"""

import platform
import statistics
import subprocess
import sys
import time

EMPTY = "import typer; app = typer.Typer(); app.command()(lambda: None); app(prog_name='empty')"
FTRAIN = "from ftrain_cli.main import app; app(prog_name='ftrain')"


def seconds(code):
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
pairs = [(seconds(EMPTY), seconds(FTRAIN)) for _ in range(runs + 1)][1:]  # the first pair fills the caches
empty, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
print(f"Python {platform.python_version()}, {platform.machine()}, {runs} runs in turn")
print(f"empty Typer app --help  {empty * 1e3:6.0f} ms")
print(f"ftrain --help           {ours * 1e3:6.0f} ms")
print(f"ratio                   {ours / empty:6.2f}")
