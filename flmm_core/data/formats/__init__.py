"""The field's annotation formats: a file each."""
