"""Where the time of a checkpoint or a restore went (docs/report.md)."""
