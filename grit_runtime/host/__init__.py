"""The machine: files, programs, processes, cgroups, and effects that can be undone."""
