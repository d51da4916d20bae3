"""Where tensors live and how exactly they are multiplied."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import resource
import sys
from pathlib import Path

import torch

from noise2next.config import Precision
from noise2next.errors import UserError

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_LARGEST_ERROR = 1e-5  # of a float32 product against float64, relative to the largest entry; bfloat16 gives about 1e-3


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one, else the CPU; otherwise what is named. Raises UserError if it is not there.

    On a CPU, float32 matrix products are then put on the fastest path that is as exact as the default one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"NOISE2NEXT_DEVICE: {name!r} is no device; write auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"NOISE2NEXT_DEVICE: {name!r} is not on this machine; write auto or cpu")
    if device.type == "cpu":
        use_fast_float32()
    return device


def matmul_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The numbers that training multiplies matrices in: bfloat16 by itself on CUDA only.

    Raises UserError for `bfloat16` on a processor that would have to imitate it.
    """
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if precision == "bfloat16" and device.type == "cpu" and not _multiplies_bfloat16():
        raise UserError("trainer.precision: this processor has no bfloat16 products; write auto or float32")
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@functools.cache
def use_fast_float32() -> bool:
    """Send float32 products to oneDNN, twice as fast as the default on AVX-512 processors, if its error is float32's.

    torch calls that path `medium` because a processor with AMX may use bfloat16 on it. Names are not trusted here: one
    product is compared with float64, and where the error is above 1e-5 the default path stays. Returns what was chosen.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = float32_error()
    if error > _LARGEST_ERROR:
        torch.set_float32_matmul_precision(before)
        log.info("float32 products stay on the default path: the fast one has a relative error of %.1e", error)
        return False
    return True


def float32_error() -> float:
    """The largest error of a batch-like float32 product against float64, relative to its largest entry."""
    draws = torch.Generator().manual_seed(0)
    a, b = torch.randn(384, 1024, generator=draws), torch.randn(1024, 512, generator=draws)
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).abs().max() / exact.abs().max())


@functools.cache
def keep_freed_memory(device: torch.device) -> bool:
    """On a CPU let freed memory serve the next tensor instead of going back; Linux with the GNU C library only.

    By itself malloc maps each block above 32 MB (and some below) anew and unmaps it when it is freed, so that the
    kernel hands out and zeroes every page of every such tensor again, which takes several times as long as adding two
    of them; what that is of a training stands in benchmarks/kept_memory.md. From now on the process stays as large as
    it once was, until `forget_peak_memory`: right for a command that ends, not for a service. Returns whether it could
    be asked for.
    """
    libc = _gnu_libc()
    if libc is None or device.type != "cpu":
        return False
    never_map, never_trim = (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)  # mallopt(3)
    return bool(libc.mallopt(*never_map) and libc.mallopt(*never_trim))


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_mb` count anew, from what is held now; where the system cannot, it counts from the beginning.

    On a CPU, freed memory that the process kept goes back to the system.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        if (libc := _gnu_libc()) is not None:
            libc.malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM becomes what is resident now


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held so far: by the process (resident) on a CPU, by torch on CUDA. Megabytes of 2^20 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")  # getrusage counts what the parent held before this program was loaded
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes


def _gnu_libc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def _multiplies_bfloat16() -> bool:
    abilities = torch.cpu.get_capabilities()
    return any(abilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
