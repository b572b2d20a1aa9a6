"""The command line: one short file per group of commands; `__main__` dispatches by name."""
