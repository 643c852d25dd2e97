"""CUDA's process checkpoint API, by the driver's library or by the program `cuda-checkpoint`; and GPUs."""
