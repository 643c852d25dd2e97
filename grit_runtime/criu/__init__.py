"""CRIU as we meet it: its images, its mount table, its configuration, its logs."""
