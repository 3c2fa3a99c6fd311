"""How the shipped weights were made. The packages do not import this folder."""
