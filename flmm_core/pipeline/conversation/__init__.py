"""Talk and point: answers of the VLM, and what they name."""
