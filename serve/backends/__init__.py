"""The code that runs inside Triton. It needs numpy and one library each, and nothing of ours."""
