"""The serving benchmark's parts: its model and texts, the systems, the load, the bound."""
