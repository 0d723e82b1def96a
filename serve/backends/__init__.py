"""The code that runs inside Triton. It needs numpy and one library each, and imports nothing of ours.

Triton runs each model.py as a file by itself, where this package is not installed: the few lines that the two
have in common (`BadRequest`, the error responses) are therefore in both.
"""
