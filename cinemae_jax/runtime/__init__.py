"""Devices, hosts, files and the terminal.  Nothing here knows images or models."""
