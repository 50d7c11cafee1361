"""The MIG part of the `tunemesh` command.

    tunemesh mig plan --gpu h100-80 --need llm=40g,share=3/7 --need tuner=20g     a placement, its commands and the compose override
    tunemesh mig status                                                           how this machine's GPUs are divided

Exit codes: 0 done; 1 nothing fits, or no NVML; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

from services.common.platform.errors import ConfigurationError, Unavailable
from services.common.platform.settings import load_settings
from services.mesh.mig.override import commands, compose_names, expected_devices, override
from services.mesh.mig.placement import MAX_GPUS, MAX_NEEDS, Need, Refusal, Slice, place
from services.mesh.mig.profiles import GPUS, Gpu
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.settings import MeshSettings

_NEED = re.compile(r"(?P<service>[a-z][a-z0-9_-]*)=(?P<memory>[1-9]\d{0,3})g(?:,share=(?P<share>[0-9./]+))?")


def add_commands(subparsers: Any) -> None:
    """Add `mig plan` and `mig status` to a subparsers action."""
    mig = subparsers.add_parser("mig", help="divide GPUs among services (Multi-Instance GPU)").add_subparsers(
        required=True, metavar="COMMAND"
    )
    plan = mig.add_parser("plan", help="find slices for the services' needs, and print the compose override")
    plan.add_argument("--gpu", required=True, choices=sorted(GPUS), help="type of the GPUs")
    plan.add_argument("--gpus", type=_gpus, default=1, metavar="N", help=f"number of such GPUs, 1 to {MAX_GPUS} (default 1)")
    plan.add_argument(
        "--need",
        type=parse_need,
        action="append",
        required=True,
        metavar="SERVICE=MEMORYg[,share=PART]",
        help="GB as in the profiles' names, and the least part of a GPU's compute, e.g. llm=40g,share=3/7",
    )
    plan.add_argument("--on-host", action="store_true", help="the slices exist on this machine: look up their numbers (as root)")
    plan.set_defaults(run=_plan)
    status = mig.add_parser("status", help="show how this machine's GPUs are divided (NVML)")
    status.add_argument("--json", action="store_true", help="print one JSON document")
    status.set_defaults(run=_status)


def parse_need(text: str) -> Need:
    """Read `llm=40g,share=3/7`; without a share any slice does.

    Raises:
        argparse.ArgumentTypeError: it is not of that form.
    """
    match = _NEED.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not SERVICE=MEMORYg or SERVICE=MEMORYg,share=PART, e.g. llm=40g,share=3/7")
    need = Need(service=match["service"], memory_gb=int(match["memory"]))
    if match["share"] is None:
        return need
    try:
        share = Fraction(match["share"])
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"share={match['share']} is no part of a GPU: use 3/7 or 0.4, above 0 and at most 1")
    return replace(need, share=share)


def _gpus(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MAX_GPUS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MAX_GPUS}")
    return int(text)


def _plan(arguments: argparse.Namespace) -> int:
    needs: list[Need] = arguments.need
    services = [need.service for need in needs]
    if len(needs) > MAX_NEEDS or len(set(services)) < len(services):
        raise ConfigurationError(f"--need: name each service once, and at most {MAX_NEEDS}")
    compose = load_compose(load_settings(MeshSettings).compose_file, os.environ)
    names = compose_names(services, compose.services)
    plan = place(GPUS[arguments.gpu], needs, num_gpus=arguments.gpus)
    if isinstance(plan, Refusal):
        print(f"nothing fits on {arguments.gpus} × {arguments.gpu}: {plan.reason}", file=sys.stderr)
        return 1
    print(_placement(plan, GPUS[arguments.gpu]))
    print("\n".join(f"# {line}" for line in ["The slices, once (as root; it needs idle GPUs):", *commands(plan)]))
    devices = _devices(plan, is_on_host=arguments.on_host)
    if devices is None:
        return 1
    print(f"# docker compose -f docker-compose.yml -f FILE --profile gpu up\n{override(names, devices)}", end="")
    return 0


def _placement(plan: Sequence[Slice], gpu: Gpu) -> str:
    lines = [f"# {'service':<20} {'GPU':>3}  {'profile':<10} {'memory slices':<14} compute"]
    for one in plan:
        last = one.start + one.profile.memory - 1
        slices = f"{one.start}" if last == one.start else f"{one.start}-{last}"
        lines.append(f"# {one.service:<20} {one.gpu:>3}  {one.profile.name:<10} {slices:<14} {one.profile.compute}/{gpu.compute}")
    return "\n".join(lines)


def _devices(plan: Sequence[Slice], *, is_on_host: bool) -> dict[str, str] | None:
    if not is_on_host:
        print("# Device ids as the slices should be counted; compare with `tunemesh mig status`, or plan again with --on-host.")
        return expected_devices(plan)
    # Imported on use: it needs the NVML bindings.
    from services.mesh.mig.host import devices_of, read_host

    try:
        found = devices_of(plan, read_host())
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return None
    if isinstance(found, str):
        print(f"error: {found}", file=sys.stderr)
        return None
    return found


def _status(arguments: argparse.Namespace) -> int:
    from services.mesh.mig.host import read_host

    try:
        gpus = read_host()
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps([asdict(gpu) for gpu in gpus], indent=1))
        return 0
    for gpu in gpus:
        print(f"GPU {gpu.index}: {gpu.name}, {gpu.memory_mib} MiB, MIG {gpu.mig} ({gpu.uuid})")
        for one in gpu.slices:
            start = "start unknown (ask as root)" if one.start is None else f"start {one.start}"
            device = f"{gpu.index}:{one.index}"
            print(f"  {device:<6} {one.profile:<10} {one.memory_mib:>7} MiB  {one.compute}g compute  {start}  {one.uuid}")
    if not gpus:
        print("no GPU on this machine")
    return 0
