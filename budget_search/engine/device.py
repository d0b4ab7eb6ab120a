"""The device and precision of fine-tunes, decided once per study and stored with it."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from budget_search.core.errors import UsageError

# How often a taken device is looked at again: evaluations take much longer.
POLL_SECONDS = 0.2

Autocast = contextlib.AbstractContextManager[object]


@dataclass(frozen=True)
class Device:
    """A resolved device (``cpu``, ``cuda:0``, ``mps``) and precision (``fp32``, ``bf16``)."""

    name: str
    precision: str

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    def autocast(self) -> Autocast:
        """Compute matrix products in bfloat16 if the precision is bf16; weights stay in fp32."""
        if self.precision == "bf16":
            return torch.autocast(self.kind, dtype=torch.bfloat16, cache_enabled=self.kind != "cuda")
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        """Wait for the work that this thread has submitted to the device."""
        if self.kind == "cuda":
            torch.cuda.current_stream(self.name).synchronize()
        elif self.kind == "mps":
            torch.mps.synchronize()

    def peak_bytes(self) -> int:
        """Peak memory allocated since ``reset_peak``; 0 if the device does not report it."""
        return torch.cuda.max_memory_allocated(self.name) if self.kind == "cuda" else 0

    def reset_peak(self) -> None:
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats(self.name)

    def describe(self) -> dict[str, object]:
        """Name, precision, hardware model and cores, for the record."""
        named = torch.cuda.get_device_name(self.name) if self.kind == "cuda" else _processor_name()
        return {"name": self.name, "precision": self.precision, "model": named, "cores": os.cpu_count() or 1}


def resolve_device(name: str, precision: str) -> Device:
    """Resolve ``auto`` on this machine. Raises UsageError for a missing device."""
    there = available_devices()
    if name == "auto":
        name = there[0]
    elif name == "cuda" and any(device.startswith("cuda") for device in there):
        name = "cuda:0"
    if name not in there:
        raise UsageError(
            f"no device {name!r} on this machine; available: {' '.join(there)}; omit --device to choose automatically"
        )
    if precision == "auto":
        precision = "bf16" if _fast_at_bf16(name) else "fp32"
    return Device(name, precision)


def available_devices() -> list[str]:
    """The devices of this machine, fastest first."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: Device) -> int:
    """Concurrent evaluations: one per core on a CPU, else one; on CUDA GPUs the number is measured instead."""
    return cores() if device.kind == "cpu" else 1


def slots(device: Device, asked: str, workers: int = 1) -> tuple[str, ...]:
    """The devices for evaluations, each repeated as often as ``workers`` evaluations share it.

    ``auto`` and ``cuda`` mean every GPU like the one that was resolved.
    """
    devices = [device.name]
    if device.kind == "cuda" and asked in ("auto", "cuda"):
        like = torch.cuda.get_device_name(device.name)
        gpus = [name for name in available_devices() if name.startswith("cuda")]
        devices = [name for name in gpus if torch.cuda.get_device_name(name) == like]
    return tuple(itertools.islice(itertools.cycle(devices), max(workers, len(devices))))


def visible_name(device: str) -> str:
    """The name in CUDA_VISIBLE_DEVICES of a GPU of this process (``cuda:1``), so that another process sees only it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    index = device.partition(":")[2]
    return visible.split(",")[int(index)].strip() if visible else index


_last_held: list[str] = []


@contextlib.contextmanager
def one_of(names: Sequence[str]) -> Iterator[str]:
    """Hold the first free slot, waiting for one if needed; prefer the one held last, whose data is loaded.

    A device that is named several times has as many slots. Each slot is a locked file, which the operating system
    releases when its holder ends or dies. All processes of a user on one machine share the devices this way. A CPU is
    not held, because its cores are shared anyway.
    """
    if "cpu" in names:
        yield "cpu"
        return
    places = [(name, names[:index].count(name)) for index, name in enumerate(names)]
    locks = {place: FileLock(_lock_folder() / f"{_identity(place[0])}.{place[1]}.lock") for place in places}
    for name, nth in itertools.cycle(sorted(places, key=lambda place: place[0] not in _last_held)):
        lock = locks[name, nth]
        try:
            lock.acquire(timeout=0 if len(locks) > 1 else -1)
        except Timeout:
            time.sleep(POLL_SECONDS / len(locks))
            continue
        _last_held[:] = [name]
        try:
            yield name
        finally:
            lock.release()
        return


def _identity(name: str) -> str:
    """An identifier of a device across processes, independent of the devices visible to them."""
    return str(torch.cuda.get_device_properties(name).uuid) if name.startswith("cuda") else name


def _lock_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir()) / f"budget-search-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _fast_at_bf16(name: str) -> bool:
    if name.startswith("cuda"):
        return torch.cuda.get_device_capability(name) >= (8, 0)
    if name == "cpu":
        # Without these instructions bfloat16 is emulated, several times slower than fp32.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def _processor_name() -> str:
    import platform

    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
