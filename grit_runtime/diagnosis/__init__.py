"""What went wrong, read from logs (docs/diagnose.md)."""
