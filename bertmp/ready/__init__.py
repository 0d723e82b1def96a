"""Getting ready: what is downloaded, what is installed beside us, what this machine can run."""
