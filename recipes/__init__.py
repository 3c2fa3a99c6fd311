"""How the shipped weights were made. Nothing in the packages imports this folder."""
