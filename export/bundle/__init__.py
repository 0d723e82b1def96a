"""The bundle: the folder that export writes and the later stages complete, and its manifest."""
