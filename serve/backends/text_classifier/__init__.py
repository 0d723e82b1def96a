"""The model.py of every deployed text model: text in, label out."""
