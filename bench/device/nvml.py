"""What NVML tells of a GPU: joules, other processes, what slows it. Without NVML nothing is told, and never 0."""

from typing import Any

import torch

THROTTLE = {  # bits of nvmlClocksThrottleReasons
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def other_processes(device: torch.device) -> int | None:
    """Processes beside this one that compute on the GPU; None where nothing tells.

    This process is one of those listed, under a number that a container may not know; an empty list hides them all.
    """
    handle = nvml_handle(device)
    if handle is None:
        return None
    try:
        import pynvml

        count = len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except Exception:
        return None
    return count - 1 if count else None


def throttling(device: torch.device) -> list[str] | None:
    """What holds the clocks of the GPU down, idling and chosen clocks aside; None where nothing tells."""
    handle = nvml_handle(device)
    if handle is None:
        return None
    try:
        import pynvml

        bits = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    except Exception:
        return None
    return [name for bit, name in THROTTLE.items() if bits & bit]


def nvml_handle(device: torch.device) -> Any:
    """What NVML calls the device, found by UUID, as NVML has an order of its own; None without a GPU or NVML."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except Exception:  # no library or no driver
        return None


def energy_counter(device: torch.device) -> Any:
    """A function that reads the total of the device in joules, or None."""
    handle = nvml_handle(device)
    if handle is None:
        return None
    try:
        import pynvml

        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # a GPU that does not count: unknown, never 0
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
