"""BERT in plain torch, and the Hugging Face folders it is read from and written to."""
