"""Where a run happens: devices, hosts, files, terminal.  Knows nothing of images or models."""
