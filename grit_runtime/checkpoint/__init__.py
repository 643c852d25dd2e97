"""What lies on disk: where a checkpoint is, and the manifest that says it is complete."""
