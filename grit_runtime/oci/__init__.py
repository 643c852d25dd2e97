"""The contract with the caller: argv, log line, exit code; bundle and config.json."""
