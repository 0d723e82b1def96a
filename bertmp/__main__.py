"""`python -m bertmp` is the same as `bertmp`."""

from bertmp.cli import main

if __name__ == "__main__":
    main()
