"""The cluster's side: Checkpoint and Restore resources, and who acts on them (docs/kubernetes.md).

Installed by the extra `grit-runtime[agent]`. The runtime imports nothing of it.
"""
