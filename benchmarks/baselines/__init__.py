"""What it is measured against."""
