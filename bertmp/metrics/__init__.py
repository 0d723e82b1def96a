"""The tasks' metrics, intervals of their differences, and verdicts; numpy alone, for training and parity."""
