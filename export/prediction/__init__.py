"""`bertmp predict`: a bundle's answers for a data file, without a server."""
