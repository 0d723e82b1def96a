"""From a bundle to a served model: the repository, the Triton server, the client."""
