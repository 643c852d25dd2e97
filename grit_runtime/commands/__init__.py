"""Commands for people, one a module: its options and help, and what it says. `grit_runtime.cli` registers them."""
