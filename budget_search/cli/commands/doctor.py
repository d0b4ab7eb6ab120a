"""``budget-search doctor``: the versions, devices and caches that a search would use on this machine."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from budget_search.core.versions import untried, versions

HELP = "show versions, devices, precision, caches, and whether the hub is reachable"
DESCRIPTION = HELP


def add_options(parser: argparse.ArgumentParser) -> None:
    del parser


def run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    print(doctor_table())
    return 0


def doctor_table() -> str:
    """One line per version, device and cache, and per library in an untested version."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from tabulate import tabulate

    from budget_search.engine.device import available_devices, default_workers, resolve_device

    device = resolve_device("auto", "auto")
    found = versions()
    rows = [
        *found.items(),
        ("devices", " ".join(available_devices())),
        ("chosen", f"{device.name} with {device.precision}"),
        ("evaluations at a time", "measured" if device.kind == "cuda" else default_workers(device)),
        ("model cache", HF_HUB_CACHE),
        ("hub", _hub_state()),
        *(("warning", f"{name} {warning}") for name, warning in untried(found).items()),
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _hub_state() -> str:
    """Whether the hub answers within three seconds."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "offline (HF_HUB_OFFLINE is set)"
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception as error:
        return f"not reachable ({type(error).__name__}); local files and the cache work"
    return f"reachable ({os.environ.get('HF_ENDPOINT') or constants.ENDPOINT})"
