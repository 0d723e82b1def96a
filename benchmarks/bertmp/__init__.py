"""What is measured of this project."""
