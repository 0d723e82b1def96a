"""What is downloaded, what is installed, and what this machine can run."""
