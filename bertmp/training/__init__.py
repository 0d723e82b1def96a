"""Training: settings, precision policy, the loop, evaluation, resumable states."""
