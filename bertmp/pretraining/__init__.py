"""Corpora for pre-training: prepared once, read through a memory map, masked again every epoch."""
