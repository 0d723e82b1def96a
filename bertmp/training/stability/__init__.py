"""The divergence monitor: non-finite steps, their source, and activation ranges."""
