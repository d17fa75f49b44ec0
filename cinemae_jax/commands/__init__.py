"""Subcommands of ``cinemae``: arguments in, one room called, words out."""
