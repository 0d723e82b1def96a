"""Errors, files, options and hardware: what every other package builds on."""
