"""grit-runtime: a drop-in OCI runtime that checkpoints a container and restores it as another one."""

__version__ = "0.1.0"
