"""A simulated CUDA driver, for machines without a GPU. Never installed; it proves nothing about a real one.

`gpu.py` is the GPU: a process that holds "device memory" for whoever is connected to its socket, and forgets it when
the connection ends. `libcuda.c` is libcuda.so.1: in a program, memory on that GPU and a restore thread; in
grit-runtime's helper, the process checkpoint API. As with the real one, CRIU cannot dump a process that is connected, a
restored process is not connected until it is restored by the API, calls wait while it is locked, and nothing answers
for a frozen or stopped process. `libnvidia-ml.c` and `cuda-checkpoint.c` stand in for NVML and for NVIDIA's program.
`cuda_plugin.c` stands in for CRIU's plugin of that name. Where the file `device` is there, whoever calls the checkpoint
API must be allowed to open it, as the real driver's caller its devices.

Faults are lines in the file `faults`: an operation and `hang`, `slow`, a CUresult, or `=N` for the value returned.
"""
