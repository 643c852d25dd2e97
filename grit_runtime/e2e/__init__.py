"""The end-to-end test of a node: a workload, its capture, its restore in another pod, and what must be so then."""
