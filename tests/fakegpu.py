"""An NVIDIA driver with a GPU behind it, played by this process: all happens as late as it may.

The memory of the GPU is this process's, and its kernel the host's part of `tiny.cu` (`kernelhost`). Work
put into a stream stays there until somebody waits for it, so that whoever forgets to wait finds nothing.
"""

import ctypes
from collections import deque
from collections.abc import Sequence

import kernelhost
import numpy as np
from cuda.bindings import driver

from fractal_core.kernels.layout import Job, Layout


def machine_code(options: Sequence[str]) -> bytes:
    """What is made of the kernel's text, as a driver may read it: up to a zero."""
    return " ".join(options).encode()


OUT_OF_MEMORY = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY


class Driver:
    """The part of the driver's interface that training needs.

    `log` holds the begin and end of every launch, with its stream; `memory` what is allocated; `clock`
    the seconds for which the GPU worked, or for which it was asked whether it had.

    Args:
        choices: The layouts that "modules" are compiled for: `machine_code` of them.
        processors: How many the GPU has.
        allocations: So many succeed.
        seconds: What a step of a point takes in each layout.
        loading: What it answers to machine code.
        unready: So often it answers, a second later each time, that work has not ended.
    """

    CUdevice_attribute = driver.CUdevice_attribute
    CUfunction_attribute = driver.CUfunction_attribute
    CUevent_flags, CUstream_flags = driver.CUevent_flags, driver.CUstream_flags

    def __init__(
        self,
        choices: Sequence[Layout],
        processors: int = 2,
        allocations: int = 1000,
        seconds: Sequence[float] = (1.0, 2.0),
        loading: driver.CUresult = driver.CUresult.CUDA_SUCCESS,
        unready: int = 0,
    ):
        self.choices, self.left = choices, allocations
        self.clock, self.seconds = 0.0, seconds
        self.loading, self.unready = loading, unready
        kinds = driver.CUdevice_attribute
        self.attributes = {
            kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: processors,
            kinds.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: 227 * 2**10,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: 9,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: 0,
        }
        self.log: list[tuple[str, int]] = []
        self.memory: dict[int, np.ndarray] = {}
        self.streams: dict[int, deque] = {}
        self.events: dict[int, int] = {}
        self._made = 0

    def cuInit(self, flags):
        return (0,)

    def cuDeviceGet(self, index):
        return 0, index

    def cuDevicePrimaryCtxRetain(self, device):
        return 0, "context"

    def cuDeviceGetName(self, most, device):
        return 0, b"played" + b"\0" * 10

    def cuDeviceGetAttribute(self, kind, device):
        return 0, self.attributes[kind]

    def cuCtxSetCurrent(self, context):
        return (0,)

    def cuModuleLoadData(self, place):
        if int(self.loading):
            return self.loading, None
        return 0, [machine_code(code.constants(True)) for code in self.choices].index(
            ctypes.string_at(place)
        )

    def cuModuleGetFunction(self, module, name):
        kernel = getattr(kernelhost.built(self.choices[module]), name.decode())

        def launched(job: Job) -> None:
            kernel(ctypes.byref(job))
            self.clock += self.seconds[module] * job.points * job.steps
            self.log.append(("layout", module))

        return 0, launched

    def cuFuncSetAttribute(self, function, kind, value):
        return (0,)

    def cuMemAlloc(self, size):
        if not self.left:
            return OUT_OF_MEMORY, None
        self.left -= 1
        room = np.full(size, 0xFF, np.uint8)
        self.memory[room.ctypes.data] = room
        return 0, room.ctypes.data

    def cuMemFree(self, place):
        for stream in self.streams:  # as the driver does
            self._work(stream, None)
        self.memory.pop(place)[:] = 0xFF
        return (0,)

    def cuStreamCreate(self, flags):
        assert flags == driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._made += 1
        self.streams[self._made] = deque()
        return 0, self._made

    def cuStreamDestroy(self, stream):
        assert not self.streams.pop(stream)
        return (0,)

    def cuEventCreate(self, flags):
        self._made += 1
        self.events[self._made] = 0
        return 0, self._made

    def cuEventDestroy(self, event):
        del self.events[event]
        return (0,)

    def cuEventRecord(self, event, stream):
        self.events[event] = stream
        self.streams[stream].append(event)
        return (0,)

    def cuEventQuery(self, event):
        if self.unready:
            self.unready -= 1
            self.clock += 1
            return (driver.CUresult.CUDA_ERROR_NOT_READY,)
        return self.cuEventSynchronize(event)

    def cuEventSynchronize(self, event):
        self._work(self.events[event], event)
        return (0,)

    def cuMemcpyHtoDAsync(self, to, start, size, stream):
        data = ctypes.string_at(start, size)  # what the caller changes afterwards is not sent
        self.streams[stream].append(lambda: ctypes.memmove(to, data, size))
        return (0,)

    def cuMemcpyDtoHAsync(self, to, start, size, stream):
        self.streams[stream].append(lambda: ctypes.memmove(to, start, size))
        return (0,)

    def cuLaunchKernel(self, function, *rest):
        *_, stream, told, _ = rest
        job = Job.from_buffer_copy(
            ctypes.string_at(ctypes.c_uint64.from_address(told).value, ctypes.sizeof(Job))
        )
        self.log.append(("launch", stream))

        def run():
            function(job)
            self.log.append(("end", stream))

        self.streams[stream].append(run)
        return (0,)

    def _work(self, stream: int, until: int | None) -> None:
        """Do what a stream holds, up to an event."""
        queue = self.streams[stream]
        while queue and (work := queue.popleft()) != until:
            if callable(work):
                work()
