"""Precision converters side by side: the graphs, the tools, and how their results are scored."""
