"""Text in, label out: the model.py of every deployed text model."""
