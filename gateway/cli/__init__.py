"""The `blockgate` command: arguments in, exit codes out."""
