"""Whether the package is right and fast on this accelerator: ``__main__`` has the command."""
