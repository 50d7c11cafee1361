"""Measure how OpenMP's threads should wait: `.venv/ml/bin/python -m loadtests.bench_openmp`. No assertion.

A torch product on two threads, in a process of its own per way of waiting: alone, and beside a process on every core. Means over four
seconds of products, in microseconds. What services/common/platform/openmp.py sets is the middle line.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

WAYS: dict[str, dict[str, str]] = {
    "300,000 spins (libgomp's own)": {"GOMP_SPINCOUNT": "300000"},
    "1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "no spins (PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
}
_OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
_PRODUCT = """
import statistics, time, torch
torch.set_num_threads(2)
left, right, took = torch.ones(64, 512), torch.ones(512, 512), []
end = time.perf_counter() + 4.0
while time.perf_counter() < end:
    began = time.perf_counter()
    left @ right
    took.append(time.perf_counter() - began)
print(1e6 * statistics.mean(took[len(took) // 10 :]))
"""


def product_us(variables: dict[str, str]) -> float:
    """Return what a product takes in a process with these variables, in microseconds."""
    environ = {name: value for name, value in os.environ.items() if name not in _OWN} | variables
    return float(subprocess.run([sys.executable, "-c", _PRODUCT], env=environ, capture_output=True, text=True, check=True).stdout)


def spin() -> None:
    """Take a core until the end."""
    while True:
        pass


def main() -> None:
    """Measure every way, alone and beside a full machine."""
    alone = {name: product_us(variables) for name, variables in WAYS.items()}
    load = [multiprocessing.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for process in load:
        process.start()
    beside = {name: product_us(variables) for name, variables in WAYS.items()}
    for process in load:
        process.kill()
    print(f"{'us a product':32}{'alone':>12}{'full machine':>15}")
    for name in WAYS:
        print(f"{name:32}{alone[name]:12.0f}{beside[name]:15.0f}")


if __name__ == "__main__":
    main()
